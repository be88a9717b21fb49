// The page of one run.

/** Show the charts, which share what their x axis is. */
function showCharts() {
  const { charts, curves } = data;
  const drawn = charts.map((about) => ({ about, chart: new Chart(about, curves) }));
  byId("charts").append(...drawn.filter(({ about }) => !about.folded).map(({ chart }) => chart.element));
  byId("more-charts").append(...drawn.filter(({ about }) => about.folded).map(({ chart }) => chart.element));
  byId("curves").hidden = !charts.length;
  byId("more-curves").hidden = !charts.some(({ folded }) => folded);
  const redraw = () => {
    const axis = document.querySelector("[name=axis]:checked").value;
    for (const { chart } of drawn) chart.show(axis, byId("log-x").checked);
  };
  for (const [axis, name] of Object.entries(AXES)) {
    if (!(axis in curves.axes)) continue;
    const choice = make("input", { type: "radio", name: "axis", value: axis });
    choice.checked = axis === "step";
    choice.addEventListener("change", redraw);
    byId("axes").append(make("label", {}, choice, name));
  }
  byId("log-x").addEventListener("change", redraw);
}

/** Show the samples one at a time, the last first. */
function showSamples() {
  const { samples } = data, slider = byId("sample");
  byId("samples").hidden = !samples.length;
  if (!samples.length) return;
  slider.max = slider.value = String(samples.length - 1);
  const show = (number) => {
    slider.value = String(number);
    const { step, text } = samples[number];
    byId("sample-step").textContent = `step ${step.toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", byId("sample-step").textContent);
    byId("sample-text").textContent = text;
    byId("earlier").disabled = number === 0;
    byId("later").disabled = number === samples.length - 1;
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  byId("earlier").addEventListener("click", () => show(Number(slider.value) - 1));
  byId("later").addEventListener("click", () => show(Number(slider.value) + 1));
  if (data.allSamples > samples.length) {
    byId("sample-note").textContent = `${samples.length} of ${data.allSamples} samples; samples.txt has all.`;
  }
  slider.disabled = samples.length === 1;
  show(samples.length - 1);
}

/** Fill a table with rows of a key and two values. */
function fillRows(id, rows) {
  byId(id).tBodies[0].append(
    ...rows.map(([key, before, now]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, before), make("td", {}, now))),
  );
}

function showConfig() {
  const { groups, changed, filled, defaults, why } = data.presets;
  byId("config-text").textContent = data.config;
  for (const id of ["changed", "filled", "defaults"]) byId(id).hidden = true;
  if (why) {
    byId("config-words").textContent = why;
    return;
  }
  const presets = groups.length ? `its presets, ${groups.join(" ")}` : "the defaults";
  const count = `${changed.length} ${changed.length === 1 ? "key differs" : "keys differ"} from ${presets}`;
  byId("config-words").textContent = changed.length ? `${count}:` : `Every key is that of ${presets}.`;
  for (const [id, rows] of [["changed", changed], ["filled", filled], ["defaults", defaults]]) {
    byId(id).hidden = !rows.length || (id === "defaults" && !groups.length);
    fillRows(`${id}-rows`, rows);
  }
  byId("defaults-count").textContent = String(defaults.length);
  byId("filled-count").textContent = String(filled.length);
}

/** Show commands, each with a button that copies it. */
function showCommands() {
  for (const [what, command] of data.commands) {
    const text = make("code", {}, command), button = make("button", { type: "button", "aria-label": `Copy the command that ${what}` }, "Copy");
    button.addEventListener("click", async () => {
      byId("copied").textContent = (await copied(text)) ? `Copied: ${command}` : "The command is marked: copy it by Ctrl+C.";
    });
    byId("commands-list").append(make("li", {}, make("p", {}, what), make("div", { class: "command" }, text, button)));
  }
}

/** Copy an element's text; false: the browser does not let a page do so, and the text is marked. */
async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}

byId("name").textContent = data.name;
byId("status").textContent = data.status;
byId("folder").textContent = data.folder;
byId("headline").replaceChildren(...data.headline.map(([what, value]) => make("div", {}, make("dt", {}, what), make("dd", {}, value))));
fillList(byId("notes"), byId("notes-list"), data.notes);
fillFacts(byId("numbers-list"), data.numbers);
fillFacts(byId("surroundings-list"), data.surroundings);
showCharts();
showSamples();
showConfig();
showCommands();
document.querySelector("main").hidden = false;
