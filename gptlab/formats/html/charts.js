// The loss by position, and attention over the text.

/** Draw the bits of each token as bars, with their mean as a line. */
function drawLoss(chart, words, tokens) {
  const known = tokens.map((token, at) => ({ ...token, at })).filter((token) => token.bits !== undefined);
  chart.replaceChildren();
  if (!known.length) {
    words.textContent = "Nothing was predicted yet.";
    return;
  }
  const mean = known.reduce((sum, token) => sum + token.bits, 0) / known.length;
  const most = Math.max(MOST_BITS, ...known.map((token) => token.bits));
  const worst = known.reduce((a, b) => (b.bits > a.bits ? b : a));
  words.textContent =
    `${mean.toFixed(2)} bits a token (${(mean * Math.LN2).toFixed(3)} nats) over ${known.length} tokens; at most ` +
    `${worst.bits.toFixed(1)} bits, at ${worst.at + 1}: ${visible(worst.text, worst.id)}`;
  chart.setAttribute("viewBox", `0 0 ${tokens.length} ${most}`);
  const shape = (name, attributes) => {
    const found = document.createElementNS(chart.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    return found;
  };
  for (const { at, bits, text, id, given } of known) {
    const bar = shape("rect", { x: at + 0.05, y: most - bits, width: 0.9, height: bits });
    if (given) bar.classList.add("given");
    const title = document.createElementNS(chart.namespaceURI, "title");
    title.textContent = `${at + 1}: ${visible(text, id)}, ${bits.toFixed(2)} bits`;
    bar.append(title);
    chart.append(bar);
  }
  chart.append(shape("line", { x1: 0, x2: tokens.length, y1: most - mean, y2: most - mean }));
}

/** Where each token looks, for one layer and head at a time. */
class AttentionView {
  /** @param {object} backend see page.js. */
  constructor(backend) {
    this.backend = backend;
    this.tokens = [];
    this.chosen = 0;
    this.row = new TokenRow(byId("attention-text"), (number, byPointer) => byPointer || this.choose(number), (number) => this.choose(number));
    for (const [id, count] of [["layer", backend.card.layers], ["head", backend.card.heads]]) {
      const options = Array.from({ length: count }, (_, i) => new Option(String(i + 1), String(i)));
      byId(id).replaceChildren(...options);
      byId(id).addEventListener("change", () => this.draw());
    }
  }

  /** Read the attention of a text. */
  async open(tokens) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const found = await this.backend.attention(tokens.map((token) => token.id));
    if (turn !== this.turn) return; // another text has come meanwhile
    this.first = tokens.length - found.count; // tokens before the window
    this.found = found;
    this.tokens = tokens.slice(this.first);
    this.chosen = this.tokens.length - 1;
    this.row.clear();
    this.row.add(this.tokens.map(({ id, text, special }) => ({ id, text, special })));
    for (const each of this.row.elements) each.classList.add("looks");
    this.draw();
  }

  choose(number) {
    this.chosen = number;
    this.draw();
  }

  draw() {
    if (!this.found) return;
    const layer = Number(byId("layer").value), head = Number(byId("head").value), count = this.tokens.length;
    const weights = this.found.weights(layer, head); // (count, count)
    const mine = weights.subarray(this.chosen * count, this.chosen * count + count);
    const most = Math.max(...mine);
    this.row.elements.forEach((each, at) => {
      each.style.setProperty("--level", at > this.chosen ? "0" : ((mine[at] / most) * 0.7).toFixed(3));
      each.classList.toggle("chosen", at === this.chosen);
      each.setAttribute("aria-label", `${visible(this.tokens[at].text, this.tokens[at].id)}, ${percent(mine[at])}`);
    });
    const best = mine.indexOf(most), name = (at) => `${visible(this.tokens[at].text, this.tokens[at].id)} (${at + 1})`;
    byId("attention-words").textContent =
      `Layer ${layer + 1}, head ${head + 1}: from ${name(this.chosen)} most of its attention, ${percent(most)}, goes to ` +
      `${name(best)}. Choose another token to look from it.${this.first ? ` ${this.found.cut}` : ""}`;
    this.paint(weights, count);
  }

  /** The whole map: a row for each token. */
  paint(weights, count) {
    const canvas = byId("attention-map");
    canvas.width = canvas.height = count;
    const pixels = new ImageData(count, count);
    const [red, green, blue] = getComputedStyle(document.documentElement).getPropertyValue("--look").trim().split(" ").map(Number);
    for (let i = 0; i < weights.length; i++) {
      pixels.data.set([red, green, blue, Math.round(255 * Math.sqrt(weights[i]))], 4 * i);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }
}
