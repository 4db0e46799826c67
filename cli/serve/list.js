"use strict";

const byId = (id) => document.getElementById(id);
const known = { runs: [], key: "started_ns", descending: true };

function cell(row, content, kind) {
  const made = row.insertCell();
  if (kind) made.className = kind;
  made.append(content);
  return made;
}

function badge(text, tone) {
  const made = document.createElement("span");
  made.className = `badge ${tone}`;
  made.textContent = text;
  return made;
}

const TONES = { live: "info", finished: "good", stopped: "warning" };

function shown() {
  const text = byId("search").value.trim().toLowerCase();
  const status = byId("status").value;
  const found = known.runs.filter((run) =>
    (!status || run.status === status) &&
    (!byId("issues").checked || run.findings.length) &&
    (!text || [run.run, run.job, run.note, ...run.tags, ...run.findings].join(" ").toLowerCase().includes(text)));
  const sign = known.descending ? -1 : 1;
  const value = (run) => run[known.key];
  return found.sort((a, b) => {
    if (value(a) === null || value(b) === null) return (value(a) === null) - (value(b) === null);
    return value(a) < value(b) ? -sign : value(a) > value(b) ? sign : a.run.localeCompare(b.run);
  });
}

function draw() {
  const body = document.createElement("tbody");
  body.id = "runs";
  const runs = shown();
  for (const run of runs) {
    const row = body.insertRow();
    const link = document.createElement("a");
    link.href = `run?run=${encodeURIComponent(run.run)}`;
    link.textContent = run.run === "." ? run.job : run.run;
    const name = cell(row, link);
    name.title = run.note;
    if (run.baseline) name.append(" ", badge("baseline", "good"));
    run.tags.forEach((tag) => name.append(" ", badge(tag, "tag")));
    cell(row, badge(run.status, TONES[run.status] || "error")).title = run.error;
    cell(row, run.step === null ? "" : String(run.step), "n");
    cell(row, run.loss === null ? "" : typeof run.loss === "number" ? run.loss.toPrecision(4) : run.loss, "n");
    const findings = cell(row, "");
    run.findings.forEach((rule) => findings.append(badge(rule, "error"), " "));
    cell(row, run.started_ns ? new Date(run.started_ns / 1e6).toLocaleString() : "");
  }
  byId("runs").replaceWith(body);
  byId("count").textContent = `${runs.length} of ${known.runs.length} runs`;
}

function offerStatuses() {
  const select = byId("status");
  const offered = new Set([...select.options].map((option) => option.value));
  for (const run of known.runs) {
    if (!offered.has(run.status)) {
      offered.add(run.status);
      select.add(new Option(run.status, run.status));
    }
  }
}

async function update() {
  try {
    const answer = await fetch("api/runs");
    if (!answer.ok) throw new Error(await answer.text());
    const content = await answer.json();
    const text = JSON.stringify(content.runs);
    byId("root").textContent = content.root;
    if (text !== known.text) {
      known.text = text;
      known.runs = content.runs;
      offerStatuses();
      draw();
    }
    byId("trouble").hidden = true;
  } catch (error) {
    byId("trouble").textContent = `No longer up to date: ${error.message}`;
    byId("trouble").hidden = false;
  }
}

for (const id of ["search", "status", "issues"]) byId(id).addEventListener("input", draw);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
for (const button of document.querySelectorAll("button[data-key]")) {
  button.addEventListener("click", () => {
    known.descending = known.key === button.dataset.key ? !known.descending : false;
    known.key = button.dataset.key;
    draw();
  });
}
update();
setInterval(update, 2000);
