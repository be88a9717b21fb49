// The report: it draws each section from the explanation in this file.

function openReport() {
  const explanation = JSON.parse(byId("explanation").textContent);
  const { name, facts, notes, tokens, totals, attention } = explanation;
  byId("name").textContent = name;
  byId("summary").textContent = `What this model does with a text of ${tokens.length} tokens.`;
  byId("notes").replaceChildren(...notes.map((each) => element("li", "", each)));
  fillFacts(byId("facts"), facts);

  const shown = tokens.map((token) => ({ ...token, bits: token.bits ?? undefined }));
  const row = new TokenRow(byId("text"), (at) => choose(at), (at) => choose(at));
  const choose = (at) => {
    byId("text").querySelector(".chosen")?.classList.remove("chosen");
    row.elements[at].classList.add("chosen");
    drawDetail(explanation, at);
  };
  row.add(shown);
  choose(Math.min(1, tokens.length - 1));
  drawLoss(byId("loss-chart"), byId("loss-words"), shown);
  drawTotals(totals);

  drawLens(explanation.lens, tokens);
  if (isThere("attention", attention)) {
    const view = new AttentionView(byId("attention"));
    view.use(attentionBackend(attention, byId("maps").textContent));
    view.open(tokens);
  }
  drawHeads(explanation.heads, (layer, head) => {
    const section = byId("attention"), select = (name) => section.querySelector(`.${name}`);
    select("layer").value = layer;
    select("head").value = head;
    select("layer").dispatchEvent(new Event("change"));
    section.scrollIntoView();
  });
  drawPassages(explanation.passages);
  drawCounts(explanation.counts, tokens, totals);
  drawNeighbours(explanation.neighbours);
}

openReport();
