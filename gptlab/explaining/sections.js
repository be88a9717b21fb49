// The sections of a report: each function draws what explanation.py has found out, see there.

const NATS = Math.LN2; // of a bit
const DIFFERENCES = 12; // tokens in a table of the greatest ones

/** A cell of a table. */
function cell(text, className = "", name = "td") {
  return element(name, className, text);
}

/** Fill a table: `heads` are [text, class] of its columns, `rows` are lists of texts or cells. */
function fill(table, caption, heads, rows) {
  const head = element("tr");
  head.append(...heads.map(([text, className]) => cell(text, className, "th")));
  const body = rows.map((row) => {
    const found = element("tr");
    found.append(...row.map((each, i) => (each instanceof Element ? each : cell(each, heads[i][1]))));
    return found;
  });
  const top = element("thead"), rest = element("tbody");
  top.append(head);
  rest.append(...body);
  table.replaceChildren(...(caption ? [element("caption", "", caption)] : []), top, rest);
}

/** A number with a few digits; null is none. */
function short(number, digits = 2) {
  return number === null ? "-" : number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A cell with a token. */
function tokenCell(text, id) {
  return cell(visible(text, id), "code");
}

/** A cell with a share as a number and a bar. */
function shareCell(share) {
  const found = cell(percent(share), "number bar");
  found.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
  return found;
}

/** Whether a section is there; otherwise say why not. */
function isThere(name, content) {
  const why = content.missing;
  const said = byId(name).querySelector(".missing");
  said.textContent = why ?? "";
  said.hidden = !why;
  byId(name).querySelector(".body").hidden = Boolean(why);
  return !why;
}

/** What the model thought of the token of a place. */
function drawDetail(explanation, at) {
  const { tokens, lens, counts } = explanation, token = tokens[at];
  const name = `${visible(token.text, token.id)} (${at + 1} of ${tokens.length})`;
  for (const id of ["likely", "by-layer"]) byId(id).replaceChildren();
  if (!token.likely) {
    byId("detail-words").textContent = `${name}: begins the text, so that nothing predicts it.`;
    return;
  }
  const beside = counts.bits?.[at];
  byId("detail-words").textContent = token.bits === null
    ? `${name}: is given, and not predicted.`
    : `${name}: ${short(token.bits)} bits (${short(token.bits * NATS)} nats), a probability of ${percent(2 ** -token.bits)}, ` +
      `the model's guess number ${token.rank.toLocaleString("en")}.` +
      (beside === undefined || beside === null ? "" : ` The table of counts: ${short(beside)} bits.`);
  const rows = token.likely.map((each) => [tokenCell(each.text, each.id), shareCell(each.probability)]);
  fill(byId("likely"), "The likeliest here", [["token", "code"], ["probability", "number"]], rows);
  const place = at - 1 - lens.first; // what is after the token before it predicts this one
  if (lens.missing || place < 0) return;
  const layers = lens.rows.map((row, i) => {
    const id = lens.ids[i][place][0];
    return [row, tokenCell(lens.texts[id], id), shareCell(lens.probabilities[i][place][0]), shareCell(2 ** -lens.next_bits[i][place])];
  });
  fill(byId("by-layer"), "The guess of each layer", [["", ""], ["guess", "code"], ["probability", "number"], ["of this token", "number"]], layers);
}

function drawTotals(totals) {
  fillFacts(byId("totals"), [
    ["tokens predicted", totals.tokens.toLocaleString("en")],
    ["bytes of them", totals.bytes.toLocaleString("en")],
    ["in all", `${short(totals.bits)} bits (${short(totals.nats)} nats)`],
    ["per token", `${short(totals.bits_per_token, 4)} bits (${short(totals.nats_per_token, 4)} nats)`],
    ["perplexity", short(totals.perplexity, 3)],
    ["bits per byte", short(totals.bits_per_byte, 4)],
  ]);
}

/** The logit lens as a grid, and its means. */
function drawLens(lens, tokens) {
  if (!isThere("lens", lens)) return;
  const shown = tokens.slice(lens.first), grid = byId("lens-grid");
  const heads = [["", ""], ...shown.map((token) => [visible(token.text, token.id), ""])];
  fill(grid, "", heads, lens.rows.map((row, i) => [
    cell(row, "", "th"),
    ...shown.map((token, place) => {
      const id = lens.ids[i][place][0], found = cell(visible(lens.texts[id], id));
      found.dataset.row = i;
      found.dataset.place = place;
      return found;
    }),
  ]));
  const cells = [...grid.querySelectorAll("td")];
  const colour = () => {
    const isKl = byId("lens-colour").value === "kl";
    for (const each of cells) {
      const { row, place } = each.dataset;
      const level = isKl ? 2 ** -lens.kl_bits[row][place] : lens.probabilities[row][place][0];
      each.style.setProperty("--level", (0.75 * level).toFixed(3));
    }
  };
  const show = (event) => {
    const { row, place } = event.target.dataset;
    if (row === undefined) return;
    grid.querySelector(".chosen")?.classList.remove("chosen");
    event.target.classList.add("chosen");
    const at = Number(place), read = shown[at], next = shown[at + 1];
    const likely = lens.ids[row][at].map((id, k) => `${visible(lens.texts[id], id)} ${percent(lens.probabilities[row][at][k])}`);
    byId("lens-words").textContent =
      `${lens.rows[row]}, after ${visible(read.text, read.id)} (${lens.first + at + 1}): ${likely.join(", ")}. ` +
      `${short(lens.kl_bits[row][at])} bits from the last row.` +
      (next ? ` What came, ${visible(next.text, next.id)}, has ${percent(2 ** -lens.next_bits[row][at])}.` : "");
  };
  byId("lens-colour").addEventListener("change", colour);
  grid.addEventListener("click", show);
  grid.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(event));
  colour();
  fill(
    byId("lens-means"),
    "Means over the text, in bits a token",
    [["", ""], ["surprisal of what came", "number"], ["KL from the last row", "number"]],
    lens.rows.map((row, i) => [row, short(lens.mean_bits[i]), short(lens.mean_kl_bits[i])]),
  );
}

/** The maps behind AttentionView, see charts.js. */
function attentionBackend({ layers, heads, tokens }, base64) {
  const levels = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const size = (tokens * (tokens + 1)) / 2;
  const weights = (layer, head) => {
    const found = new Float32Array(tokens * tokens);
    let from = (layer * heads + head) * size;
    for (let i = 0; i < tokens; i++) for (let j = 0; j <= i; j++) found[i * tokens + j] = (levels[from++] / 255) ** 2;
    return found;
  };
  return { card: { layers, heads }, attention: async () => ({ count: tokens, weights }) };
}

/** A table of scores for each kind; `choose` is called with the layer and head of a cell that is clicked. */
function drawHeads(heads, choose) {
  if (!isThere("heads", heads)) return;
  const { sequences, length, even } = heads;
  byId("heads-words").textContent =
    `Means over ${sequences} sequences of ${length} different tokens, each twice. A head that looks at everything ` +
    `evenly has ${short(even.previous)}, ${short(even.induction)} and ${short(even.first)}. A head that finds nothing often ` +
    "rests on the first token. Choose a head to see its map above.";
  const kinds = [
    ["previous", "Previous token", "from a token to the one before it"],
    ["induction", "Induction", "from a token to what followed it the first time"],
    ["first", "First token", "from a token to the first of all"],
  ];
  byId("head-tables").replaceChildren(...kinds.map(([name, title, words]) => {
    const box = element("div", "scrolls"), table = element("table");
    const columns = [["", ""], ...heads[name][0].map((_, head) => [`head ${head + 1}`, "number"])];
    fill(table, `${title}: ${words}`, columns, heads[name].map((row, layer) => [
      cell(`layer ${layer + 1}`, "", "th"),
      ...row.map((score, head) => {
        const found = cell(), button = element("button", "", short(score));
        button.type = "button";
        button.style.setProperty("--level", (0.8 * score).toFixed(3));
        button.setAttribute("aria-label", `${title}, layer ${layer + 1}, head ${head + 1}: ${short(score)}`);
        button.addEventListener("click", () => choose(layer, head));
        found.append(button);
        return found;
      }),
    ]));
    box.append(table);
    return box;
  }));
}

function drawPassages(passages) {
  if (!isThere("passages", passages)) return;
  const { source, longest, spans, held_out: chance } = passages;
  const middle = chance ? chance[Math.floor(chance.length / 2)] : 0;
  byId("passages-words").textContent =
    `Searched: ${source}. The longest match has ${longest} characters.` +
    (chance
      ? ` In ${chance.length} stretches of held-out text as long as this one the longest has ${chance[0]} to ${chance.at(-1)}, in the middle ${middle}.`
      : " There is no held-out text to compare with.") +
    (passages.passages.length ? "" : " None is long enough to be shown.");
  byId("passages-table").hidden = !passages.passages.length;
  const full = Math.max(2 * middle, 40);
  byId("passages-text").replaceChildren(...spans.map(([text, length]) => {
    const found = element("span", "", text);
    found.style.setProperty("--level", (0.6 * Math.min(length / full, 1)).toFixed(3));
    found.title = `in a match of ${length} characters`;
    return found;
  }));
  fill(
    byId("passages-table"),
    "The longest matches that do not overlap",
    [["length", "number"], ["times", "number"], ["line", "number"], ["where it first stands", "words"]],
    passages.passages.map(({ text, count, line, before, after }) => {
      const found = cell("", "words");
      found.append(element("span", "quiet", before), element("mark", "", text), element("span", "quiet", after));
      return [String([...text].length), count.toLocaleString("en"), line.toLocaleString("en"), found];
    }),
  );
}

function drawCounts(counts, tokens, totals) {
  if (!isThere("counts", counts)) return;
  const name = `ngram:${counts.order}`;
  byId("counts-words").textContent =
    `${counts.words}: ${short(counts.totals.bits_per_token, 3)} bits a token. The model: ${short(totals.bits_per_token, 3)}.`;
  const both = tokens
    .map((token, at) => ({ at, ...token, beside: counts.bits[at] }))
    .filter((each) => each.bits !== null && each.beside !== null)
    .map((each) => ({ ...each, gain: each.beside - each.bits }));
  const table = (id, caption, sign) => {
    const best = both.filter((each) => sign * each.gain > 0).sort((a, b) => sign * (b.gain - a.gain)).slice(0, DIFFERENCES);
    const heads = [["token", "code"], ["model", "number"], [name, "number"], ["difference", "number"]];
    fill(byId(id), caption, heads, best.map((each) => {
      const found = cell("", "code"), before = tokens.slice(Math.max(each.at - 12, 0), each.at).map((token) => token.text).join("");
      found.append(element("span", "quiet", visible([...before].slice(-12).join(""), "")), element("mark", "", visible(each.text, each.id)));
      return [found, short(each.bits), short(each.beside), short(each.gain)];
    }));
  };
  table("model-knows", "The model knows better (bits)", 1);
  table("table-knows", "The table knows better (bits)", -1);
}

function drawNeighbours(neighbours) {
  if (!isThere("neighbours", neighbours)) return;
  const { tokens, points, variance, left_out: left } = neighbours;
  const shares = variance.map((share) => percent(share)).join(" and ");
  byId("neighbours-words").textContent =
    `The text's tokens (bold) and the nearest of each on the two directions in which they differ most (PCA: ${shares} of ` +
    `the variance).${left ? ` ${left} more tokens of the text are left out.` : ""}`;
  const picture = byId("points"), width = 640, height = 420, margin = 30;
  const place = (name, size) => {
    const all = points.map((point) => point[name]), low = Math.min(...all), span = Math.max(...all) - low || 1;
    return (value) => margin + ((value - low) / span) * (size - 2 * margin);
  };
  const x = place("x", width), y = place("y", height);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.replaceChildren(...points.map((point) => {
    const found = document.createElementNS(picture.namespaceURI, "text");
    found.textContent = visible(point.text, point.id);
    found.setAttribute("x", x(point.x).toFixed(1));
    found.setAttribute("y", (height - y(point.y)).toFixed(1));
    if (point.of_text) found.classList.add("own");
    return found;
  }));
  fill(
    byId("neighbours-table"),
    "The nearest, with their cosines",
    [["token", "code"], ["nearest", "words"]],
    tokens.map(({ id, text, nearest }) => {
      const found = cell("", "words");
      nearest.forEach((each, i) => {
        found.append(element("span", "code", visible(each.text, each.id)), element("span", "quiet", ` ${short(each.cosine)}${i + 1 < nearest.length ? ", " : ""}`));
      });
      return [tokenCell(text, id), found];
    }),
  );
}
