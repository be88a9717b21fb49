// Compare and vote: two answers to a prompt, and nothing tells whose they are until somebody has said which is better.

class Vote {
  /**
   * @param {Page} page
   * @param {Function} sides returns who answers, see `Views.sides`.
   */
  constructor(page, sides) {
    this.page = page;
    this.sides = sides;
    this.lines = []; // that the server does not keep
    this.box = element("section");
    this.box.id = "vote";
    this.box.hidden = true;
    this.buttons = element("div", "buttons");
    this.buttons.setAttribute("role", "group");
    this.buttons.setAttribute("aria-label", "Which answer is better?");
    for (const [better, words, key] of [[0, ["Left", "Upper"], "1"], [1, ["Right", "Lower"], "2"], [null, null, "0"]]) {
      const button = element("button");
      if (words) button.append(element("span", "wide", words[0]), element("span", "narrow", words[1]), ` is better (${key})`);
      else button.append(`Neither (${key})`);
      button.type = "button";
      button.dataset.key = key;
      button.addEventListener("click", () => this.send(better));
      this.buttons.append(button);
    }
    this.buttons.addEventListener("keydown", (event) => {
      const button = [...this.buttons.children].find((each) => each.dataset.key === event.key);
      if (button && !event.ctrlKey && !event.altKey && !event.metaKey) button.click();
    });
    this.status = element("p", "note");
    this.status.setAttribute("role", "status");
    this.download = element("a", "", "Download the votes");
    this.download.download = "votes.jsonl";
    this.download.hidden = true;
    this.box.append(this.buttons, this.status, this.download);
    byId("columns").before(this.box);
    for (const [id, kind] of [["clear", "click"], ["modes", "change"]]) {
      byId(id).addEventListener(kind, () => this.open(!this.box.hidden));
    }
    page.around = (start) => (this.box.hidden ? start() : this.ask(start));
  }

  /** Begin or cease to ask for votes. */
  open(isOpen) {
    this.box.hidden = !isOpen;
    this.asked = null;
    this.enable(false);
    this.status.textContent = "Two answers will come, in an order that is drawn. Whose they are is shown after the vote.";
    for (const column of this.page.used) column.blind(isOpen);
    if (isOpen) this.page.used.forEach((column, at) => column.call(`Answer ${at + 1}`));
  }

  enable(isEnabled) {
    this.box.classList.toggle("asks", isEnabled);
    for (const button of this.buttons.children) button.disabled = !isEnabled;
  }

  /** Let both sides answer the prompt, in the order that is drawn. */
  async ask(start) {
    const prompt = byId("prompt").value, sides = this.sides();
    if (crypto.getRandomValues(new Uint8Array(1))[0] & 1) sides.reverse();
    const asked = (this.asked = { prompt, sides });
    this.enable(false);
    this.status.textContent = "Both are writing.";
    const columns = this.page.used;
    await this.page.clear(() => columns.forEach((column, at) => {
      column.use(sides[at].backend);
      column.change = sides[at].change;
      column.call(`Answer ${at + 1}`);
      column.blind(true);
    }));
    if (this.asked !== asked) return;
    await start();
    if (this.asked !== asked) return;
    const answers = columns.map((column) => column.answer);
    for (const column of columns) column.showPlainly();
    if (columns.some((column) => column.wrong)) this.status.textContent = "There is nothing to vote on.";
    else if (answers[0] === answers[1] || !answers.every(Boolean)) {
      this.status.textContent = "The answers are the same, or one is empty: there is nothing to vote on. Ask again.";
    } else {
      Object.assign(asked, { answers });
      this.status.textContent = "Which answer is better? The keys 1, 2 and 0 work, too.";
      this.enable(true);
      this.buttons.firstElementChild.focus({ preventScroll: true });
    }
  }

  /** Let the server write a vote, and show whose the answers are. */
  async send(better) {
    const { asked } = this, columns = this.page.used;
    this.enable(false);
    const answers = columns.map(({ backend, how }, at) => ({
      model: backend.card.name, text: asked.answers[at], seed: how.temperature ? how.seed : null, temperature: how.temperature,
    }));
    let found;
    try {
      found = await (await ask("v1/votes", { prompt: asked.prompt, answers, better })).json();
    } catch (error) {
      if (this.asked !== asked) return;
      this.status.textContent = error.message;
      this.enable(true);
      return;
    }
    if (this.asked !== asked) return;
    if (found.file === null && better !== null) this.lines.push(found.line);
    this.reveal(better, found.file);
  }

  reveal(better, file) {
    const said = better === null ? "Neither was better." : `You prefer ${this.page.used[better].backend.card.name}.`;
    const count = `${this.lines.length} ${this.lines.length === 1 ? "vote" : "votes"}`;
    const kept = file !== null ? ` Written to ${file}.` : better === null ? "" : ` This page keeps ${count} until it is closed.`;
    this.status.textContent = said + kept;
    this.page.used.forEach((column, at) => {
      column.blind(false);
      column.call(`${at + 1}: ${column.backend.card.name}`);
    });
    if (this.lines.length) {
      URL.revokeObjectURL(this.download.href);
      this.download.href = URL.createObjectURL(new Blob(this.lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
      this.download.hidden = false;
    }
    byId("prompt").focus({ preventScroll: true });
  }
}
