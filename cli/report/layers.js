"use strict";
(() => {
  const data = JSON.parse(document.getElementById("layer-data").textContent);
  const columns = data.steps.length;
  const bytes = Uint8Array.from(atob(data.numbers), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const FIELDS = ["rms", "low", "high", "mean", "std"];
  const choice = document.getElementById("layer-choice");
  const table = document.getElementById("layer-table");
  const told = document.getElementById("layer-findings");

  function numbers(at, field) {
    const first = (at * FIELDS.length + FIELDS.indexOf(field)) * columns;
    return Array.from({ length: columns }, (_, i) => view.getFloat32(4 * (first + i), true));
  }

  function source(name) {
    for (const page of Bokeh.documents) {
      const found = page.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  }

  function lastOf(values) {
    return values.reduce((last, value) => (Number.isNaN(value) ? last : value), NaN);
  }

  function spell(value) {
    return Number.isNaN(value) ? "-" : Number(value.toPrecision(4)).toString();
  }

  function element(kind, text, parent, name) {
    const made = document.createElement(kind);
    made.textContent = text;
    if (name) made.className = name;
    parent.append(made);
    return made;
  }

  function showSpread(tensor, button) {
    const [low, high, mean, std] = ["low", "high", "mean", "std"].map((field) => numbers(tensor.at, field));
    source("layer-spread").data = {
      step: data.steps, low, high, mean,
      below: mean.map((value, i) => Math.max(value - std[i], low[i])),
      above: mean.map((value, i) => Math.min(value + std[i], high[i])),
    };
    document.getElementById("layer-spread-name").textContent = tensor.name;
    for (const each of table.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
  }

  function show(layer) {
    choice.value = layer.name;
    const colour = (i) => data.colours[i % data.colours.length];
    const sizes = layer.tensors.map((tensor) => numbers(tensor.at, "rms").map((value) => (value > 0 ? Math.log10(value) : NaN)));
    source("layer-sizes").data = {
      steps: layer.tensors.map(() => data.steps), values: sizes,
      colour: layer.tensors.map((_, i) => colour(i)), name: layer.tensors.map((tensor) => tensor.name),
    };
    const updated = layer.tensors.map((tensor, i) => [tensor, i]).filter(([tensor]) => tensor.updates);
    source("layer-updates").data = {
      steps: updated.map(([tensor]) => tensor.updates.steps), values: updated.map(([tensor]) => tensor.updates.values),
      colour: updated.map(([, i]) => colour(i)), name: updated.map(([tensor]) => tensor.name),
    };
    document.getElementById("layer-updates").hidden = updated.length === 0;
    document.getElementById("layer-no-updates").hidden = updated.length > 0;
    table.replaceChildren();
    layer.tensors.forEach((tensor, i) => {
      const row = element("tr", "", table);
      const cell = element("td", "", row);
      const swatch = element("span", "", cell, "swatch");
      swatch.style.background = colour(i);
      const button = element("button", tensor.name, cell, "name");
      button.type = "button";
      button.addEventListener("click", () => showSpread(tensor, button));
      element("td", tensor.shape, row);
      for (const field of FIELDS) element("td", spell(lastOf(numbers(tensor.at, field))), row, "n");
      element("td", tensor.broken ? "yes" : "no", row, tensor.broken ? "n bad" : "n");
      if (i === 0) showSpread(tensor, button);
    });
    told.replaceChildren();
    for (const finding of layer.findings) {
      const link = element("a", finding.text, element("li", "", told));
      link.href = `#${finding.key}`;
    }
    document.getElementById("layer-none").hidden = layer.findings.length > 0;
  }

  function named() {
    const wanted = decodeURIComponent(location.hash.replace(/^#layer=/, ""));
    return location.hash.startsWith("#layer=") ? data.layers.find((layer) => layer.name === wanted) : undefined;
  }

  const groups = new Map();
  for (const layer of data.layers) {
    let parent = choice;
    if (layer.block) {
      parent = groups.get(layer.block);
      if (!parent) {
        parent = element("optgroup", "", choice);
        parent.label = layer.block;
        groups.set(layer.block, parent);
      }
    }
    const label = `${layer.name || "the model itself"}${layer.kind ? `  (${layer.kind})` : ""}`;
    const option = element("option", layer.findings.length ? `${label}  !` : label, parent);
    option.value = layer.name;
  }

  function choose(layer) {
    show(layer);
    if (parent !== window) parent.postMessage({ layer: layer.name }, "*");
  }

  choice.addEventListener("change", () => {
    choose(data.layers.find((layer) => layer.name === choice.value));
    history.replaceState(null, "", `#layer=${encodeURIComponent(choice.value)}`);
  });
  window.addEventListener("hashchange", () => {
    const layer = named();
    if (layer) {
      choose(layer);
      document.getElementById("layers").scrollIntoView();
    }
  });

  // A click on a line of a heat map opens its layer.
  const ofTensor = new Map(data.layers.flatMap((layer) => layer.tensors.map((tensor) => [tensor.name, layer])));
  function listen(name) {
    const chart = source(`heat-${name}`);
    if (!chart) return;
    chart.on_event("tap", (event) => {
      const names = data.heats[name];
      const layer = ofTensor.get(names[names.length - 1 - Math.floor(event.y)]);
      if (layer) location.hash = `layer=${encodeURIComponent(layer.name)}`;
    });
  }

  function start() {
    if (!source("layer-spread")) {
      setTimeout(start, 50);
      return;
    }
    Object.keys(data.heats).forEach(listen);
    show(named() || data.layers.find((layer) => layer.findings.length) || data.layers[0]);
    if (named()) document.getElementById("layers").scrollIntoView();
  }
  start();
})();
