"use strict";

const byId = (id) => document.getElementById(id);
const run = new URLSearchParams(location.search).get("run") || "";
const asked = `run=${encodeURIComponent(run)}`;
const loaded = { version: null, at: 0, busy: false, layer: "" };
const REST = 5000; // milliseconds between two reports of a run that goes on

byId("report").addEventListener("load", () => { loaded.busy = false; });

// The report says which layer it shows, so that the next one shows it too.
window.addEventListener("message", (event) => {
  const layer = event.data && event.data.layer;
  if (event.source === byId("report").contentWindow && typeof layer === "string") loaded.layer = layer;
});

function loadReport(version) {
  loaded.version = version;
  loaded.at = Date.now();
  loaded.busy = true;
  byId("report").src = `report?${asked}&version=${version}`
    + (loaded.layer ? `#layer=${encodeURIComponent(loaded.layer)}` : "");
}

async function update() {
  try {
    const answer = await fetch(`api/run?${asked}`);
    if (!answer.ok) throw new Error(await answer.text());
    const row = await answer.json();
    byId("run").textContent = row.job || row.run;
    document.title = `${row.job || row.run} - Stepwatch`;
    const loss = typeof row.loss === "number" ? `, loss ${row.loss.toPrecision(4)}` : "";
    byId("state").textContent = row.step === null ? row.status : `${row.status}, step ${row.step}${loss}`;
    const changed = row.version !== loaded.version && !loaded.busy;
    if (loaded.version === null || (changed && byId("follow").checked && Date.now() - loaded.at > REST)) {
      loadReport(row.version);
    }
    byId("trouble").hidden = true;
  } catch (error) {
    byId("trouble").textContent = `No longer up to date: ${error.message}`;
    byId("trouble").hidden = false;
  }
}

update();
setInterval(update, 2000);
