// The page: it continues a text or answers in a chat, and shows what the model thought of each token.
//
// The model is behind a backend: this page's own (local.js), or one that asks a server. A backend has
//
//   card                        {name, facts: [[what, value]], summary, blockSize, layers, heads, ends: [id], chat}, where chat
//                               is null or {begin: [id], turns: {user: id, assistant: id}, end: id}, layers is 0 without
//                               attention, and a summary that is undefined is made of the facts
//   encode(text, isTurn, signal)
//                               the ids of a text with what begins one, or of a turn in a chat alone; an Error's message is shown
//   decode(ids)                 their text
//   tokens(ids)                 [{id, text, special}]: the text that each adds; special: the name of a special token
//   steps(ids, how, count, signal)
//                               an async iterator of at most `count` new tokens: {id, text, special, bits, likely}; bits: the
//                               surprisal; likely: the five likeliest, [{id, text, probability}]; it ends after one of card.ends
//   score(ids, signal)          [{bits, likely}], an entry for each id; empty where nothing predicts it
//   attention(ids)              {count, weights(layer, head), cut}: of the last `count` ids, a row of `count` weights for each;
//                               cut: why not of all, in words
//
// `how` is {temperature, topK, topP, minP, repetitionPenalty, seed}; null: no such filter. `signal` is an AbortSignal; after
// it, the iterator throws. All but card return promises.

class Page {
  constructor(backend) {
    this.backend = backend;
    this.tokens = [];
    this.running = null; // an AbortController
    this.row = new TokenRow(byId("text"), (number) => this.choices.show(number, this.tokens[number]), (...given) => this.open(...given));
    this.choices = new Choices(byId("choices"), this.row, (number, id) => this.branch(number, id));
    this.attention = new AttentionView(backend);
    this.describe();
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    byId("ask").addEventListener("invalid", () => (byId("sampling").open = true), true);
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || !(event.ctrlKey || event.metaKey || this.isChat)) return;
      event.preventDefault();
      byId("ask").requestSubmit();
    });
    byId("modes").addEventListener("change", () => this.clear());
    byId("more").addEventListener("click", () => byId("ask").reportValidity() && this.write());
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    byId("loss").addEventListener("toggle", () => this.drawLoss());
    byId("attention").addEventListener("toggle", () => this.drawAttention());
  }

  get isChat() {
    return Boolean(this.backend.card.chat) && byId("ask").elements.mode.value === "chat";
  }

  get ids() {
    return this.tokens.map((token) => token.id);
  }

  /** Say what the model is. */
  describe() {
    const { name, facts, summary, chat } = this.backend.card;
    document.title = name;
    byId("name").textContent = name;
    const fact = Object.fromEntries(facts);
    const known = [["parameters", "parameters"], ["val/loss", ""]].filter(([key]) => fact[key] !== undefined);
    byId("summary").textContent = summary ?? [
      ...known.map(([key, unit]) => `${key === "val/loss" ? "loss " : ""}${fact[key]} ${unit}`.trim()),
      ...(fact.data ? [`trained on ${fact.data}`] : []),
    ].join(", ");
    byId("facts").replaceChildren(...facts.flatMap(([key, value]) => [element("dt", "", key), element("dd", "", value)]));
    byId("modes").hidden = !chat;
    this.label();
  }

  label() {
    byId("prompt-label").textContent = this.isChat ? "Say something" : "Begin the text";
    byId("write").textContent = this.isChat ? "Send" : "Write";
  }

  /** The values of the controls. */
  sampling() {
    const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
    return {
      temperature: number("temperature") ?? 1,
      topK: number("top-k"),
      topP: number("top-p"),
      minP: number("min-p"),
      repetitionPenalty: number("penalty") ?? 1,
      seed: number("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0],
    };
  }

  say(words, isWrong = false) {
    byId("status").textContent = words;
    byId("status").classList.toggle("wrong", isWrong);
  }

  /** Begin a text with the prompt, or say it in the chat. */
  async start() {
    const running = await this.begin();
    const prompt = byId("prompt").value, { signal } = running;
    this.show();
    this.say("Reading the text.");
    try {
      const ids = this.isChat ? await this.turn(prompt, signal) : await this.backend.encode(prompt, false, signal);
      const given = (await this.backend.tokens(ids)).map((token) => ({ ...token, given: true }));
      signal.throwIfAborted();
      const kept = this.isChat ? this.tokens : [];
      this.cut(kept.length);
      this.add(given.slice(kept.length));
    } catch (error) {
      this.end(running);
      this.say(signal.aborted ? "Stopped." : error.message, !signal.aborted);
      return;
    }
    if (this.isChat) byId("prompt").value = "";
    await this.write(running);
  }

  /** The ids of the conversation so far with another thing that the user says, up to where the answer begins. */
  async turn(text, signal) {
    const { begin, turns, end } = this.backend.card.chat;
    const before = this.tokens.length ? this.ids : [...begin];
    if (this.tokens.length && before.at(-1) !== end) before.push(end);
    return [...before, turns.user, ...(await this.backend.encode(text, true, signal)), end, turns.assistant];
  }

  /** Continue the text; `running` is what `begin` has returned, if that was called before. */
  async write(running) {
    running ??= await this.begin();
    const how = this.sampling(), count = Number(byId("count").value);
    const began = performance.now();
    let made = 0, wrong = "";
    this.show();
    try {
      this.say("Reading the text.");
      for await (const token of this.backend.steps(this.ids, how, count, running.signal)) {
        this.add([token]);
        made += 1;
        if (made % 16 === 1) this.say(`Writing: ${made} tokens`);
      }
    } catch (error) {
      if (!running.signal.aborted) wrong = error.message;
    }
    const rate = (1000 * made) / (performance.now() - began);
    const scoring = running.isStopped ? new AbortController() : running;
    Object.assign(scoring, { done: running.done, finished: running.finished });
    this.running = scoring;
    if (!wrong && !scoring.signal.aborted) wrong = await this.score(scoring.signal);
    this.end(scoring);
    const speed = `${made} tokens, ${rate.toFixed(rate < 10 ? 1 : 0)} a second${how.temperature ? `, seed ${how.seed}` : ""}`;
    this.say(wrong || `${running.signal.aborted ? "Stopped: " : ""}${speed}`, Boolean(wrong));
  }

  /** Ask what the model thinks of what it did not write, and return what went wrong. */
  async score(signal) {
    const last = this.tokens.findLastIndex((token, at) => at > 0 && !token.likely);
    if (last < 0) return "";
    try {
      const found = await this.backend.score(this.ids.slice(0, last + 1), signal);
      found.forEach((each, at) => {
        const token = this.tokens[at];
        if (!token || token.likely || each.bits === undefined) return;
        Object.assign(token, each);
        colour(this.row.elements[at], token);
      });
    } catch (error) {
      if (!signal.aborted) return error.message;
    }
    return "";
  }

  /** Let the text be as it is, and score what of it was read. */
  stop() {
    if (!this.running) return;
    this.running.isStopped = true;
    this.running.abort();
  }

  /** Stop what runs, wait until it has, and return the controller of what runs from now on, until `end`. */
  async begin() {
    this.choices.hide();
    while (this.running) {
      this.running.abort();
      await this.running.done;
    }
    const running = (this.running = new AbortController());
    running.done = new Promise((resolve) => (running.finished = resolve));
    return running;
  }

  end(running) {
    this.running = null;
    running.finished();
    this.show();
  }

  add(tokens) {
    this.tokens.push(...tokens);
    this.row.add(tokens);
  }

  cut(count) {
    this.tokens.length = count;
    this.row.cut(count);
  }

  /** Show what there is, and let the buttons do what can be done. */
  show() {
    const isThere = this.tokens.length > 0, isRunning = Boolean(this.running);
    byId("written").hidden = !isThere;
    byId("loss").hidden = !isThere;
    byId("attention").hidden = !isThere || !this.backend.card.layers;
    byId("stop").disabled = !isRunning;
    byId("status").setAttribute("aria-busy", String(isRunning));
    byId("clear").disabled = !isThere;
    byId("more").disabled = !isThere || isRunning || this.backend.card.ends.includes(this.tokens.at(-1)?.id);
    if (isRunning) return;
    this.drawLoss();
    this.drawAttention();
  }

  open(number, byKeyboard) {
    this.choices.show(number, this.tokens[number]);
    this.choices.enter(byKeyboard);
  }

  /** Put another token in a place, and go on from it. */
  async branch(number, id) {
    if (!byId("ask").reportValidity()) return;
    const { likely } = this.tokens[number];
    const running = await this.begin();
    if (this.tokens[number]?.likely !== likely) return this.end(running); // another text has come meanwhile
    const token = (await this.backend.tokens([...this.ids.slice(0, number), id])).at(-1);
    const bits = -Math.log2(likely.find((each) => each.id === id).probability);
    this.cut(number);
    this.add([{ ...token, bits, likely }]);
    this.row.elements.at(-1).focus();
    this.choices.hide();
    await this.write(running);
  }

  /** Forget the text; `change` is called when nothing runs. */
  async clear(change) {
    const running = await this.begin();
    this.cut(0);
    change?.();
    this.label();
    this.end(running);
    this.say("");
    byId("prompt").focus();
  }

  drawLoss() {
    if (byId("loss").open && this.tokens.length) drawLoss(byId("loss-chart"), byId("loss-words"), this.tokens);
  }

  async drawAttention() {
    if (byId("attention").open && this.tokens.length && !this.running) await this.attention.open(this.tokens);
  }
}

/** Show a backend's model. */
function openPage(backend) {
  window.page = new Page(backend);
}
