// The backend that is the model itself, in this page.

const MOST_WEIGHTS = 1 << 24; // of attention that are kept at once
const BREATH = 30; // milliseconds after which the browser may draw and listen

/** Wait until the browser has drawn what is new; where nothing is drawn, as in a hidden tab, a moment. */
function breathe() {
  return new Promise((resolve) => {
    setTimeout(resolve, 100);
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => {
        channel.port1.close();
        resolve();
      };
      channel.port2.postMessage(null);
    });
  });
}

/** Returns a function that waits when the browser has waited long enough, and throws once a signal is aborted. */
function pacer(signal) {
  let last = performance.now();
  return () => {
    signal?.throwIfAborted();
    if (performance.now() - last < BREATH) return undefined;
    return breathe().then(() => {
      signal?.throwIfAborted();
      last = performance.now();
    });
  };
}

/** See page.js for what a backend is. */
class LocalBackend {
  constructor({ card, tokenizer, model }, weights) {
    this.card = card;
    this.tokenizer = new Tokenizer(tokenizer);
    this.model = openModel(model, weights);
    this.names = Object.fromEntries(Object.entries(tokenizer.special).map(([name, id]) => [id, name]));
  }

  async encode(text, isTurn = false) {
    const unknown = this.tokenizer.unknown(text);
    if (unknown.length) {
      throw new Error(`The model has never seen ${unknown.slice(0, 20).map((each) => visible(each)).join(" ")}: leave it out.`);
    }
    return isTurn ? this.tokenizer.encode(text) : this.tokenizer.prompt(text);
  }

  async tokens(ids) {
    const stream = new TextStream(this.tokenizer);
    return ids.map((id) => ({ id, text: stream.add(id), special: this.names[id] }));
  }

  /** What the page shows of a distribution: the surprisal of a token, and the likeliest ones. */
  shown(logits, id) {
    const found = softmax(logits);
    const likely = likeliest(found, 5).map((each) => ({
      id: each,
      text: this.names[each] ?? textOf([this.tokenizer.bytes[each]]),
      probability: found[each],
    }));
    return { bits: bitsOf(found[id]), likely };
  }

  async *steps(ids, how, count, signal) {
    const context = new Context(this.model, ids), numbers = new RandomNumbers(how.seed);
    const stream = new TextStream(this.tokenizer), pause = pacer(signal);
    for (const id of ids) stream.add(id);
    for (let i = 0; i < count; i++) {
      const logits = await context.next(pause);
      const id = draw(logits, how, context.ids, numbers);
      yield { id, text: stream.add(id), special: this.names[id], ...this.shown(logits, id) };
      if (this.card.ends.includes(id)) return;
      context.append(id);
    }
  }

  async score(ids, signal) {
    const context = new Context(this.model, ids.slice(0, 1)), pause = pacer(signal);
    const found = [{}];
    for (const id of ids.slice(1)) {
      found.push(this.shown(await context.next(pause), id));
      context.append(id);
    }
    return found;
  }

  async attention(ids, signal) {
    const { layers, heads, blockSize } = this.model.config;
    const most = Math.floor(Math.sqrt(MOST_WEIGHTS / (layers * heads)));
    const seen = ids.slice(-Math.min(blockSize, most)), count = seen.length;
    const pause = pacer(signal), cache = this.model.newCache();
    const maps = new Float32Array(layers * heads * count * count);
    for (let at = 0; at < count; at++) {
      this.model.read(cache, seen[at], undefined, (layer, head, weights, from) => {
        maps.set(weights, ((layer * heads + head) * count + at) * count + from);
      });
      await pause();
    }
    const size = count * count;
    const weights = (layer, head) => maps.subarray((layer * heads + head) * size, (layer * heads + head + 1) * size);
    return { count, weights };
  }
}

if (typeof document !== "undefined") {
  const content = (id) => document.getElementById(id).textContent;
  try {
    openPage(new LocalBackend(JSON.parse(content("model")), content("weights")));
  } catch (error) {
    document.getElementById("summary").textContent = `This file is damaged: ${error.message}. Copy it again.`;
  }
}
