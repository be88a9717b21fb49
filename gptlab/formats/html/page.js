// The page: a form with a prompt and the controls, and the columns that it lets write, see column.js.
//
// The model is behind a backend: this page's own (local.js), or one that asks a server. A backend has
//
//   card                        {name, facts: [[what, value]], summary, blockSize, layers, heads, ends: [id], chat}, where chat
//                               is null or {begin: [id], turns: {user: id, assistant: id}, end: id}, layers is 0 without
//                               attention, and a summary that is undefined is made of the facts
//   encode(text, isTurn, signal)
//                               the ids of a text with what begins one, or of a turn in a chat alone; an Error's message is shown
//   tokens(ids, signal)         [{id, text, special}]: the text that each adds; special: the name of a special token
//   steps(ids, how, count, signal)
//                               an async iterator of at most `count` new tokens: {id, text, special, bits, likely}; bits: the
//                               surprisal; likely: the five likeliest, [{id, text, probability}]; it ends after one of card.ends
//   score(ids, signal)          [{bits, likely}], an entry for each id; empty where nothing predicts it
//   attention(ids, signal)      {count, weights(layer, head)}: of the last `count` ids, a row of `count` weights for each
//
// `how` is {temperature, topK, topP, minP, repetitionPenalty, seed}; null: no such filter. `signal` is an AbortSignal; after
// it, the iterator throws. All but card return promises.

class Page {
  constructor(backend) {
    this.columns = [];
    this.around = (start) => start(); // called with what a prompt begins
    this.setColumns([backend]);
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.around(() => this.start());
    });
    byId("ask").addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || !(event.ctrlKey || event.metaKey || this.isChat)) return;
      event.preventDefault();
      byId("ask").requestSubmit();
    });
    byId("modes").addEventListener("change", () => this.clear());
    byId("more").addEventListener("click", () => this.goOn());
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => {
      this.clear();
      byId("prompt").focus();
    });
    this.describe([backend.card]);
  }

  /** Let there be a column for each of these backends; those that are there keep their texts. */
  setColumns(backends) {
    while (this.columns.length < backends.length) this.columns.push(new Column(backends[this.columns.length], this));
    this.shown = backends.length;
    byId("columns").replaceChildren(...this.used.map((column) => column.box));
    this.used.forEach((column, at) => {
      column.use(backends[at]);
      column.call(this.shown === 1 ? "The text" : `${at + 1}: ${backends[at].card.name}`);
      column.show();
    });
    document.body.classList.toggle("several", this.shown > 1);
  }

  /** The columns that are shown. */
  get used() {
    return this.columns.slice(0, this.shown);
  }

  get isChat() {
    return this.canChat && byId("ask").elements.mode.value === "chat";
  }

  get canChat() {
    return this.used.every((column) => column.backend.card.chat);
  }

  /** Say what the models are. */
  describe(cards) {
    document.title = cards.map(({ name }) => name).join(", ");
    byId("name").textContent = cards.map(({ name }) => name).join(" and ");
    byId("summary").textContent = cards.map(summaryOf).join("; ");
    const facts = cards.flatMap((card) => card.facts);
    fillFacts(byId("facts"), facts);
    byId("card").querySelector("summary").textContent = cards.length > 1 ? "About these models" : "About this model";
    this.label();
    this.show();
  }

  label() {
    byId("modes").hidden = !this.canChat;
    byId("prompt-label").textContent = this.isChat ? "Say something" : "Begin the text";
    byId("write").textContent = this.isChat ? "Send" : "Write";
  }

  /** The values of the controls for each column in use; without a seed all have the same. */
  sampling() {
    const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
    const how = {
      temperature: number("temperature") ?? 1,
      topK: number("top-k"),
      topP: number("top-p"),
      minP: number("min-p"),
      repetitionPenalty: number("penalty") ?? 1,
      seed: number("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0],
    };
    return this.used.map((column) => ({ ...how, ...column.change(how) }));
  }

  get count() {
    return Number(byId("count").value);
  }

  /** What a column is to write by; null, and the form says why, where a control has no value. */
  controls(column) {
    if (!byId("ask").reportValidity()) return null;
    return { how: this.sampling()[this.columns.indexOf(column)], count: this.count };
  }

  /** Begin texts with the prompt, or say it in the chats. */
  async start() {
    const hows = this.sampling(), { isChat, count } = this, prompt = byId("prompt").value;
    await Promise.all(this.used.map(async (column, at) => {
      const running = await column.read(prompt, isChat);
      if (!running) return;
      if (isChat && byId("prompt").value === prompt) byId("prompt").value = "";
      await column.write(hows[at], count, running);
    }));
  }

  /** Continue the texts as they stand. */
  async goOn() {
    if (!byId("ask").reportValidity()) return;
    const hows = this.sampling();
    await Promise.all(this.used.map(async (column, at) => {
      if (column.canGoOn) await column.write(hows[at], this.count, await column.begin());
    }));
  }

  stop() {
    for (const column of this.used) column.stop();
  }

  /** Forget the texts; `change` is called when nothing runs. */
  async clear(change) {
    const columns = [...this.columns], running = [];
    for (const column of columns) column.running?.abort();
    for (const column of columns) running.push(await column.begin());
    for (const column of columns) column.forget();
    change?.();
    columns.forEach((column, at) => column.end(running[at]));
    this.label();
  }

  /** Let the buttons do what can be done. */
  show() {
    const columns = this.used, isThere = columns.some((column) => column.tokens.length);
    byId("legend").hidden = !columns.some((column) => column.tokens.length && !column.isBlind);
    byId("stop").disabled = !columns.some((column) => column.running);
    byId("clear").disabled = !isThere;
    byId("more").disabled = !columns.some((column) => column.canGoOn && !column.isBlind);
  }
}

/** A model in a line. */
function summaryOf({ facts, summary }) {
  const fact = Object.fromEntries(facts);
  const known = [["parameters", "parameters"], ["val/loss", ""]].filter(([key]) => fact[key] !== undefined);
  return summary ?? [
    ...known.map(([key, unit]) => `${key === "val/loss" ? "loss " : ""}${fact[key]} ${unit}`.trim()),
    ...(fact.data ? [`trained on ${fact.data}`] : []),
  ].join(", ");
}

/** Show a backend's model. */
function openPage(backend) {
  window.page = new Page(backend);
}
