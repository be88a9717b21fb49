// A column: a text that a model continues, with what the model thought of each token. Page has one, or two side by side.

class Column {
  /**
   * @param {object} backend see page.js.
   * @param {Page} page asked for the controls, and told when something runs or has ended.
   */
  constructor(backend, page) {
    this.page = page;
    this.tokens = [];
    this.running = null; // an AbortController
    this.isBlind = false; // whether nothing may tell whose text it is, see `blind`
    this.change = () => ({}); // how it draws otherwise than the controls say
    this.box = byId("column").content.firstElementChild.cloneNode(true);
    this.row = new TokenRow(this.find("text"), (number) => this.choices.show(number, this.tokens[number]), (...given) => this.open(...given));
    this.choices = new Choices(this.find("choices"), this.row, (number, id) => this.branch(number, id));
    this.attention = new AttentionView(this.find("attention"));
    this.find("loss").addEventListener("toggle", () => this.drawLoss());
    this.find("attention").addEventListener("toggle", () => this.drawAttention());
    this.use(backend);
  }

  find(name) {
    return this.box.querySelector(`.${name}`);
  }

  /** Let this be the model that is asked from now on. */
  use(backend) {
    this.backend = backend;
    this.attention.use(backend);
  }

  /** Name the column, for the eye and for screen readers. */
  call(title) {
    this.find("title").textContent = title;
    for (const name of ["text", "attention-text", "choices", "loss", "attention"]) {
      const words = { "attention-text": "where the chosen token looks", choices: "the likeliest tokens here" }[name];
      this.find(name).setAttribute("aria-label", words ? `${title}: ${words}` : title);
    }
  }

  get ids() {
    return this.tokens.map((token) => token.id);
  }

  /** What the model has written. */
  get answer() {
    return this.tokens.filter((token) => !token.given).map((token) => token.text).join("");
  }

  get canGoOn() {
    return this.tokens.length > 0 && !this.running && !this.backend.card.ends.includes(this.tokens.at(-1).id);
  }

  say(words) {
    this.find("status").textContent = this.isBlind ? "" : words;
  }

  /** Say below the text what went wrong; no words: nothing did. */
  complain(words) {
    this.wrong = words;
    this.find("wrong").textContent = words;
    this.find("wrong").hidden = !words;
  }

  /**
   * Read a prompt, or what somebody says in a chat.
   * @returns {object} what runs, for `write`; null if it cannot be read.
   */
  async read(prompt, isChat) {
    const running = await this.begin(), { signal } = running;
    this.say("Reading the text.");
    try {
      const ids = isChat ? await this.turn(prompt, signal) : await this.backend.encode(prompt, false, signal);
      const given = (await this.backend.tokens(ids, signal)).map((token) => ({ ...token, given: true }));
      signal.throwIfAborted();
      const kept = isChat ? this.tokens.length : 0;
      this.cut(kept);
      this.add(given.slice(kept));
      return running;
    } catch (error) {
      this.say(signal.aborted ? "Stopped." : "");
      if (!signal.aborted) this.complain(error.message);
      this.end(running);
      return null;
    }
  }

  /** The ids of the conversation so far with another thing that the user says, up to where the answer begins. */
  async turn(text, signal) {
    const { begin, turns, end } = this.backend.card.chat;
    const before = this.tokens.length ? this.ids : [...begin];
    if (this.tokens.length && before.at(-1) !== end) before.push(end);
    return [...before, turns.user, ...(await this.backend.encode(text, true, signal)), end, turns.assistant];
  }

  /**
   * Continue the text.
   * @param {object} how see page.js.
   * @param {number} count new tokens at most.
   * @param {object} running what `read` or `begin` has returned.
   */
  async write(how, count, running) {
    const began = performance.now();
    let made = 0, wrong = "";
    this.how = how;
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
    const speed = `${made} tokens, ${rate.toFixed(rate < 10 ? 1 : 0)} a second${how.temperature ? `, seed ${how.seed}` : ""}`;
    this.said = `${running.signal.aborted ? "Stopped: " : ""}${speed}`;
    this.say(wrong && !made ? "" : this.said);
    this.complain(wrong);
    this.end(scoring);
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
        if (!this.isBlind) colour(this.row.elements[at], token);
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
    this.complain("");
    this.show();
    return running;
  }

  end(running) {
    this.running = null;
    running.finished();
    this.show();
  }

  add(tokens) {
    this.tokens.push(...tokens);
    if (!this.isBlind) this.row.add(tokens);
  }

  cut(count) {
    this.tokens.length = count;
    this.row.cut(count);
  }

  /** Show what there is. */
  show() {
    const isThere = this.tokens.length > 0 && !this.isBlind;
    this.find("title").hidden = !isThere && this.page.shown === 1;
    this.find("paper").hidden = !isThere;
    this.find("loss").hidden = !isThere;
    this.find("attention").hidden = !isThere || !this.backend.card.layers;
    this.find("status").setAttribute("aria-busy", String(Boolean(this.running)));
    this.page.show();
    if (this.running) return;
    this.drawLoss();
    this.drawAttention();
  }

  /** Show a blind column's text, without what would tell whose it is: surprisals, tokens, speed. */
  showPlainly() {
    const given = this.tokens.filter((token) => token.given && !token.special).map((token) => token.text).join("");
    this.row.clear();
    this.row.box.append(element("span", "given", given), this.answer);
    this.find("paper").hidden = false;
  }

  /** Begin or cease to hide whose text it is. */
  blind(isBlind) {
    this.isBlind = isBlind;
    this.row.clear();
    if (!isBlind) this.row.add(this.tokens);
    this.say(this.said ?? "");
    this.show();
  }

  open(number, byKeyboard) {
    this.choices.show(number, this.tokens[number]);
    this.choices.enter(byKeyboard);
  }

  /** Put another token in a place, and go on from it. */
  async branch(number, id) {
    const found = this.page.controls(this);
    if (!found) return;
    const { likely } = this.tokens[number];
    const running = await this.begin();
    if (this.tokens[number]?.likely !== likely) return this.end(running); // another text has come meanwhile
    const token = (await this.backend.tokens([...this.ids.slice(0, number), id])).at(-1);
    const bits = -Math.log2(likely.find((each) => each.id === id).probability);
    this.cut(number);
    this.add([{ ...token, bits, likely }]);
    this.row.elements.at(-1).focus();
    this.choices.hide();
    await this.write(found.how, found.count, running);
  }

  /** Forget the text; only while nothing else runs. */
  forget() {
    this.cut(0);
    this.row.clear();
    this.said = "";
    this.say("");
  }

  drawLoss() {
    const loss = this.find("loss");
    if (loss.open && !loss.hidden) drawLoss(this.find("loss-chart"), this.find("loss-words"), this.tokens);
  }

  async drawAttention() {
    const attention = this.find("attention");
    if (attention.open && !attention.hidden && !this.running) await this.attention.open(this.tokens);
  }
}
