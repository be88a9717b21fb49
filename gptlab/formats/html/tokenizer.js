// Text to ids and back, as gptlab's tokenizers of characters, bytes, words and byte-level BPE.

// White space as Python's \s and Rust's; JavaScript's \s has U+FEFF, too, and lacks U+0085.
const SPACES_OF_PYTHON = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORDS = new RegExp(`[\\p{L}\\p{N}_]+|[^\\p{L}\\p{N}_${SPACES_OF_PYTHON}]`, "gu");
const S = "\\p{White_Space}";
const END = `${S}+$|`;
const REST = `${S}+(?!\\P{White_Space})|${S}`;
const PIECES = {
  gpt2: new RegExp(`'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${S}\\p{L}\\p{N}]+|${END}${REST}`, "gu"),
  cl100k: new RegExp(
    "'(?:[sS\\u017fdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" +
      ` ?[^${S}\\p{L}\\p{N}]+[\\r\\n]*|${END}${S}*[\\r\\n]|${REST}`,
    "gu",
  ),
};
const utf8 = new TextEncoder();

/** Bytes as a string of letters up to U+00FF, by which they can be looked up. */
function letters(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

/** The text of bytes; what is not UTF-8 becomes U+FFFD. */
function textOf(chunks) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return chunks.map((bytes) => decoder.decode(bytes, { stream: true })).join("") + decoder.decode();
}

const PLACES = 2 ** 31; // in a piece, beside which an id of 22 bits fits into a number

/** Numbers, of which the smallest comes out first. */
class Heap {
  items = [];

  push(item) {
    let at = this.items.push(item) - 1;
    for (let up; at > 0 && this.items[(up = (at - 1) >> 1)] > item; at = up) this.items[at] = this.items[up];
    this.items[at] = item;
  }

  pop() {
    const items = this.items, first = items[0], last = items.pop();
    if (!items.length) return first;
    let at = 0;
    for (let down = 1; down < items.length; down = 2 * at + 1) {
      if (down + 1 < items.length && items[down + 1] < items[down]) down++;
      if (items[down] >= last) break;
      items[at] = items[down];
      at = down;
    }
    items[at] = last;
    return first;
  }
}

class Tokenizer {
  /** @param {object} description as content.py writes it. */
  constructor(description) {
    this.kind = description.kind;
    this.end = description.end_of_text;
    this.begin = description.begin;
    this.special = description.special;
    this.pieces = PIECES[description.pattern];
    const names = Object.fromEntries(Object.entries(this.special).map(([name, id]) => [id, name]));
    const texts = this.texts(description);
    const count = Math.max(texts.length, ...Object.values(this.special).map((id) => id + 1));
    this.bytes = Array.from({ length: count }, (_, id) =>
      id in names ? utf8.encode(names[id]) : typeof texts[id] === "string" ? utf8.encode(texts[id]) : texts[id] || new Uint8Array(),
    );
  }

  /** The texts or bytes of the ids but for the special ones; prepares what `encode` looks up. */
  texts({ tokens }) {
    if (this.kind === "byte") return Array.from({ length: 256 }, (_, i) => Uint8Array.of(i));
    if (this.kind === "bpe") {
      const bytes = tokens.split(" ").map(fromBase64);
      this.ranks = new Map(bytes.map((each, id) => [letters(each), id]));
      return bytes;
    }
    const first = this.kind === "word" ? 1 : 0;
    const known = this.kind === "char" ? [...tokens] : tokens;
    this.ids = new Map(known.map((each, i) => [each, i + first]));
    if (this.kind === "char") return known;
    return ["<|unk|>", ...known].map((word) => (".,;:!?%)]}'\"…".includes(word) && word ? word : ` ${word}`));
  }

  encode(text) {
    if (this.kind === "char") return [...text].filter((c) => this.ids.has(c)).map((c) => this.ids.get(c));
    if (this.kind === "byte") return [...utf8.encode(text)];
    if (this.kind === "word") return (text.match(WORDS) || []).map((word) => this.ids.get(word) ?? 0);
    const whole = textOf([utf8.encode(text)]); // without lone surrogates
    return (whole.match(this.pieces) || []).flatMap((piece) => this.merge(letters(utf8.encode(piece))));
  }

  /** The ids of a piece: of neighbours, those are merged first that have the lowest id together, the leftmost first. */
  merge(piece) {
    if (this.ranks.has(piece)) return [this.ranks.get(piece)];
    const n = piece.length, next = new Int32Array(n + 1), before = new Int32Array(n + 1); // of the parts, by where they begin
    for (let i = 0; i <= n; i++) [next[i], before[i]] = [i + 1, i - 1];
    const rank = (i) => (next[i] < n ? this.ranks.get(piece.slice(i, next[next[i]])) : undefined);
    const waiting = new Heap();
    const wait = (i) => {
      const found = rank(i);
      if (found !== undefined) waiting.push(found * PLACES + i);
    };
    for (let i = 0; i < n; i++) wait(i);
    for (let best = waiting.pop(); best !== undefined; best = waiting.pop()) {
      const at = best % PLACES;
      if (next[at] === -1 || rank(at) !== (best - at) / PLACES) continue; // merged since
      const gone = next[at];
      next[at] = next[gone];
      next[gone] = -1;
      if (next[at] < n) before[next[at]] = at;
      wait(at);
      if (at > 0) wait(before[at]);
    }
    const found = [];
    for (let i = 0; i < n; i = next[i]) found.push(this.ranks.get(piece.slice(i, next[i])));
    return found;
  }

  /** The distinct characters that `encode` leaves out. */
  unknown(text) {
    return this.kind === "char" ? [...new Set(text)].filter((c) => !this.ids.has(c)) : [];
  }

  decode(ids) {
    const text = textOf(ids.map((id) => this.bytes[id]));
    return this.kind === "word" && text.startsWith(" ") ? text.slice(1) : text;
  }

  /** The ids of a prompt, after what begins a text; of no text its end, else 0. */
  prompt(text) {
    const ids = [...this.begin, ...this.encode(text)];
    return ids.length ? ids : [this.end ?? 0];
  }
}

/** The text of ids as they come: a character that several of them make comes with the last. */
class TextStream {
  constructor(tokenizer, begins = true) {
    this.tokenizer = tokenizer;
    this.begins = begins && tokenizer.kind === "word";
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  }

  add(id) {
    const text = this.decoder.decode(this.tokenizer.bytes[id], { stream: true });
    const first = this.begins;
    this.begins = false;
    return first && text.startsWith(" ") ? text.slice(1) : text;
  }
}
