// How many texts the page shows, and by which models: one, two side by side, or two to vote on. See page.js.

class Views {
  /**
   * @param {Page} page
   * @param {object[]} backends of the models that are served.
   */
  constructor(page, backends) {
    this.page = page;
    this.backends = backends;
    this.vote = new Vote(page, () => this.sides());
    this.form = element("fieldset");
    this.form.id = "views";
    this.form.append(element("legend", "", "What to show"));
    for (const [value, words] of [["one", "One text"], ["two", "Two side by side"], ["vote", "Compare and vote"]]) {
      const label = element("label"), radio = element("input");
      Object.assign(radio, { type: "radio", name: "view", value, checked: value === "one" });
      label.append(radio, ` ${words}`);
      this.form.append(label);
    }
    this.models = element("div", "fields");
    this.models.id = "models";
    this.first = this.select("model", "Model");
    this.second = this.select("model-2", "Second model");
    byId("ask").before(this.form, this.models);
    this.addControls();
    this.form.addEventListener("change", () => this.apply());
    this.models.addEventListener("change", () => this.apply());
    this.open();
  }

  get view() {
    return this.form.querySelector(":checked").value;
  }

  /** A choice between the models. */
  select(id, words) {
    const label = element("label", "", `${words} `), select = element("select");
    select.id = id;
    select.append(...this.backends.map(({ card }, at) => new Option(card.name, String(at))));
    label.append(select);
    this.models.append(label);
    return select;
  }

  /** The controls of the second text, where it is not to have those of the first. */
  addControls() {
    this.controls = element("div", "fields");
    for (const name of ["temperature", "seed"]) {
      const label = element("label", "", `Second ${name} `), input = byId(name).cloneNode();
      input.id = `${name}-2`;
      input.value = "";
      input.placeholder = "the same";
      label.append(input);
      this.controls.append(label);
    }
    byId("sampling").querySelector(".fields").after(this.controls);
  }

  /** Who writes: a backend, and how otherwise than the controls say. One model that writes twice takes the next seed. */
  sides() {
    const [one, other] = [this.first, this.second].map((select) => this.backends[Number(select.value)]);
    const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
    const changed = (how) => {
      const temperature = number("temperature-2") ?? how.temperature;
      const isSame = one === other && temperature === how.temperature;
      return { temperature, seed: number("seed-2") ?? (isSame ? how.seed + 1 : how.seed) };
    };
    return [{ backend: one, change: () => ({}) }, { backend: other, change: changed }];
  }

  /** Forget the texts, and show what is chosen. */
  apply() {
    this.page.clear(() => this.open());
  }

  open() {
    const { view } = this, sides = this.sides().slice(0, view === "one" ? 1 : 2), isTwo = sides.length === 2;
    this.models.hidden = this.backends.length < 2;
    this.second.parentElement.hidden = this.controls.hidden = !isTwo;
    for (const input of this.controls.querySelectorAll("input")) input.disabled = !isTwo;
    byId("seed-2").placeholder = this.first.value === this.second.value ? "the next" : "the same";
    byId("prompt").required = view === "vote"; // of which a line is made
    this.page.setColumns(sides.map(({ backend }) => backend));
    this.page.used.forEach((column, at) => (column.change = sides[at].change));
    this.page.describe([...new Set(sides.map(({ backend }) => backend.card))]);
    this.vote.open(view === "vote");
  }
}
