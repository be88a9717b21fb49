// The report: it draws each section from the explanation in this file.

function openReport() {
  const explanation = JSON.parse(byId("explanation").textContent);
  const { name, facts, notes, tokens, totals, attention } = explanation;
  byId("name").textContent = name;
  byId("summary").textContent = `What this model does with a text of ${tokens.length} tokens.`;
  byId("notes").replaceChildren(...notes.map((each) => element("li", "", each)));
  byId("facts").replaceChildren(...facts.flatMap(([key, value]) => [element("dt", "", key), element("dd", "", value)]));

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
    new AttentionView(attentionBackend(attention, byId("maps").textContent)).open(tokens);
  }
  drawHeads(explanation.heads, (layer, head) => {
    byId("layer").value = layer;
    byId("head").value = head;
    byId("layer").dispatchEvent(new Event("change"));
    byId("attention").scrollIntoView();
  });
  drawPassages(explanation.passages);
  drawCounts(explanation.counts, tokens, totals);
  drawNeighbours(explanation.neighbours);
}

openReport();
