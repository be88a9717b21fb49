// A GPT with weights of 8 bits, token by token: the steps of gptlab's cpu_decoder.py, in their order. What a layer reads is
// rounded to 8 bits, keys and values to bfloat16, as `generate --precision int8` does.

/** Keep floats as the nearest numbers of bfloat16, ties to even; both arrays are of their bits. */
function keepInBfloat16(from, begin, count, to, at) {
  for (let i = 0; i < count; i++) {
    const bits = from[begin + i];
    to[at + i] = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  }
}

/** The error function, to 1.2e-16 of 1 near 0 and 1e-15 elsewhere: by its series, or a continued fraction. */
function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (-x * x) / n;
      sum += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let fraction = size;
  for (let n = 60; n > 0; n--) fraction = size + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction);
}

const POWERS = Float64Array.from({ length: 2047 }, (_, i) => 2 ** (i - 1023)); // of 2

/** e^x within 1e-10 of it, in half the time of Math.exp: 2^k e^r with |r| <= ln 2 / 2, and e^r by its Taylor series. */
function exponential(x) {
  if (!(x > -700)) return x <= -700 ? 0 : NaN;
  if (x > 700) return Infinity;
  const k = Math.floor(x * Math.LOG2E + 0.5), r = x - k * Math.LN2;
  const square = r * r;
  const low = 1 + r + (1 / 2 + r * (1 / 6)) * square;
  const high = 1 / 24 + r * (1 / 120) + (1 / 720 + r * (1 / 5040) + square * (1 / 40320)) * square;
  return (low + high * square * square) * POWERS[k + 1023];
}

const gelu = (x) => x / (1 + exponential(-2 * 0.7978845608 * (x + 0.044715 * x * x * x)));
const ACTIVATIONS = {
  gelu,
  geglu: gelu,
  gelu_exact: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  relu: (x) => Math.max(x, 0),
  relu2: (x) => Math.max(x, 0) ** 2,
  swiglu: (x) => x / (1 + exponential(-x)),
};

/** The layers, with the memory that one token's pass needs. */
class GPT {
  /**
   * @param {object} config the sizes and switches, as content.py writes them.
   * @param {object} tensors by name: {shape, floats}, or {shape, integers, scales}.
   * @param {boolean} [plain] use no WebAssembly.
   */
  constructor(config, tensors, plain = false) {
    const c = (this.config = config);
    const matrices = Object.values(tensors).filter((each) => each.integers);
    this.products = new Products(matrices.map((each) => each.shape), plain);
    for (const each of matrices) {
      each.place = this.products.place(each.integers, ...each.shape);
      if (each !== tensors["wte.weight"]) each.integers = null; // of which a copy is enough
    }
    this.tensors = tensors;
    const part = (name) => ({
      weight: tensors[`${name}.weight`],
      scales: tensors[`${name}.weight`]?.floats,
      bias: tensors[`${name}.bias`]?.floats,
    });
    const names = ["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "attn.q_norm", "attn.k_norm", "attn.conv"];
    names.push("mlp.c_fc", "mlp.c_proj", "mlp.conv");
    const parts = (i) => Object.fromEntries(names.map((name) => [name.replace(".", "_"), part(`h.${i}.${name}`)]));
    this.blocks = Array.from({ length: c.layers }, (_, i) => parts(i));
    [this.ln_e, this.ln_f, this.lm_head] = ["ln_e", "ln_f", "lm_head"].map(part);
    if (!this.lm_head.weight) this.lm_head.weight = tensors["wte.weight"]; // tied
    const buffer = (size) => new Float32Array(size);
    [this.x, this.h, this.h2, this.mixed] = [0, 0, 0, 0].map(() => buffer(c.width));
    this.y = buffer(c.heads * c.headSize);
    this.qkv = buffer((c.heads + 2 * c.kvHeads) * c.headSize);
    this.hidden = buffer(c.hidden);
    this.qkvBits = new Uint32Array(this.qkv.buffer);
    this.fc = buffer(c.hidden * (c.gated ? 2 : 1));
    this.scores = buffer(c.columns);
    this.query = buffer(c.padded);
    this.activation = ACTIVATIONS[c.mlp];
  }

  /** What is kept of the tokens that were read: position p lies in column p modulo `columns`. */
  newCache() {
    const c = this.config;
    const each = (size) => Array.from({ length: c.layers }, () => new Float32Array(size));
    const size = c.hasAttention ? c.kvHeads * c.columns * c.padded : 0;
    const conv = c.conv * c.width;
    const keys = each(size), values = each(size);
    const [keyBits, valueBits] = [keys, values].map((all) => all.map((some) => new Uint32Array(some.buffer)));
    return { length: 0, keys, values, keyBits, valueBits, conv: { attn: each(conv), mlp: each(conv) } };
  }

  /**
   * Read the next token.
   * @param {object} cache of `newCache`.
   * @param {number} token its id.
   * @param {Float32Array} [logits] where the logits after it are written; without it they are not computed.
   * @param {Function} [watch] called as watch(layer, head, weights, first): a token's attention from position `first` on.
   */
  read(cache, token, logits, watch) {
    const c = this.config;
    this.embed(token, cache.length);
    // Of the last block, later tokens read keys and values alone, unless it has convolutions.
    const isRead = logits || watch || c.conv || !c.hasAttention || c.layers === 0;
    for (let i = 0; i < c.layers; i++) this.block(cache, i, watch, isRead || i + 1 < c.layers);
    cache.length += 1;
    if (!logits) return;
    const last = c.pre ? this.norm(this.ln_f, this.x, this.h) : this.x;
    this.linear(this.lm_head, last, logits, false);
    const cap = c.softcap;
    if (cap !== null) for (let i = 0; i < logits.length; i++) logits[i] = cap * Math.tanh(logits[i] / cap);
  }

  embed(token, position) {
    const { shape: [, C], integers, scales } = this.tensors["wte.weight"];
    const table = this.tensors.positions;
    for (let j = 0; j < C; j++) {
      const x = Math.fround(Math.fround(integers[token * C + j] * scales[token]) * this.config.embeddingScale);
      this.x[j] = table ? x + table.floats[position * C + j] : x;
    }
    if (this.config.embedNorm) this.norm(this.ln_e, this.x, this.x);
  }

  block(cache, i, watch, isRead) {
    const c = this.config, { ln_1, ln_2 } = this.blocks[i], pre = c.pre;
    if (c.parallel) {
      let source = pre ? this.norm(ln_1, this.x, this.h) : this.x;
      if (source === this.x) this.h.set(this.x); // attention changes x before the MLP reads it
      source = c.parallelNorms ? this.norm(ln_2, this.x, this.h2) : this.h;
      if (source === this.x) source = this.h;
      this.attend(cache, i, this.h, c.residual, watch, isRead);
      if (!isRead) return;
      this.mlp(cache, i, source, true);
      if (!pre) this.norm(ln_1, this.x, this.x);
      return;
    }
    if (c.hasAttention) {
      this.attend(cache, i, pre ? this.norm(ln_1, this.x, this.h) : this.x, c.residual, watch, isRead);
      if (!isRead) return;
      if (!pre) this.norm(ln_1, this.x, this.x);
    }
    if (c.hasMlp) {
      this.mlp(cache, i, pre ? this.norm(ln_2, this.x, this.h) : this.x, c.residual);
      if (!pre) this.norm(ln_2, this.x, this.x);
    }
  }

  /** A norm of x into y; returns y, or x itself where the model has no norm. */
  norm(part, x, y) {
    const kind = this.config.norm;
    if (kind === "none") return x;
    this.normalise(part, x, y, 0, x.length, kind === "rmsnorm");
    return y;
  }

  normalise({ scales: w, bias: b }, x, y, begin, n, rms) {
    let mean = 0, square = 0;
    if (!rms) {
      for (let j = 0; j < n; j++) mean += x[begin + j];
      mean = Math.fround(mean / n);
    }
    for (let j = 0; j < n; j++) square += (x[begin + j] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / n + this.config.eps);
    for (let j = 0; j < n; j++) y[begin + j] = (x[begin + j] - mean) * scale * (w ? w[j] : 1) + (b ? b[j] : 0);
  }

  /** A linear layer of x, or x itself where the model has no such layer, into y, or added to it. */
  linear({ weight, bias }, x, y, adds) {
    const sums = weight ? this.products.multiply(weight.place, x) : x, scales = weight?.scales;
    for (let o = 0; o < y.length; o++) {
      let sum = scales ? Math.fround(sums[o] * scales[o]) : sums[o];
      if (bias) sum = Math.fround(sum + bias[o]);
      y[o] = adds ? y[o] + sum : sum;
    }
  }

  /** x plus the weighted sum of the last inputs, channel by channel; x itself where the model has no convolution. */
  convolve(cache, i, name, x) {
    const taps = this.config.conv, C = this.config.width;
    if (!taps) return x;
    const ring = cache.conv[name][i], w = this.blocks[i][`${name}_conv`].scales;
    ring.set(x, (cache.length % taps) * C);
    this.mixed.set(x);
    for (let tap = 0; tap < taps; tap++) {
      const at = cache.length - (taps - 1) + tap;
      if (at < 0) continue;
      for (let j = 0; j < C; j++) this.mixed[j] += w[tap * C + j] * ring[(at % taps) * C + j];
    }
    return this.mixed;
  }

  mlp(cache, i, x, adds) {
    const { hidden: n, gated } = this.config, { mlp_c_fc, mlp_c_proj } = this.blocks[i];
    this.linear(mlp_c_fc, this.convolve(cache, i, "mlp", x), this.fc, false);
    for (let j = 0; j < n; j++) {
      const y = Math.fround(this.activation(this.fc[j]));
      this.hidden[j] = gated ? y * this.fc[n + j] : y;
    }
    this.linear(mlp_c_proj, this.hidden, this.x, adds);
  }

  attend(cache, i, x, adds, watch, isRead) {
    const c = this.config, part = this.blocks[i], D = c.headSize, qkv = this.qkv;
    this.linear(part.attn_c_attn, this.convolve(cache, i, "attn", x), qkv, false);
    for (let h = 0; h < c.heads + c.kvHeads; h++) {
      if (c.qkNorm) this.normalise(h < c.heads ? part.attn_q_norm : part.attn_k_norm, qkv, qkv, h * D, D, true);
      if (c.rotary) this.rotate(h * D, cache.length);
    }
    const keys = cache.keys[i], values = cache.values[i], column = cache.length % c.columns;
    for (let k = 0; k < c.kvHeads; k++) {
      const at = (k * c.columns + column) * c.padded, from = (c.heads + k) * D;
      keepInBfloat16(this.qkvBits, from, D, cache.keyBits[i], at);
      keepInBfloat16(this.qkvBits, from + c.kvHeads * D, D, cache.valueBits[i], at);
    }
    if (!isRead) return;
    const first = Math.max(0, cache.length - c.span + 1);
    for (let h = 0; h < c.heads; h++) {
      this.head(keys, values, h, first, cache.length);
      if (watch) watch(i, h, this.scores.subarray(0, cache.length - first + 1), first);
    }
    this.linear(part.attn_c_proj, this.y, this.x, adds);
  }

  /** Turn the pairs (j, j + R/2) of a head by the angle of its position. */
  rotate(begin, position) {
    const { size, scale } = this.config.rotary, frequencies = this.tensors.frequencies.floats, half = size / 2;
    for (let j = 0; j < half; j++) {
      const angle = Math.fround(position * frequencies[j]);
      const cos = Math.fround(scale * Math.fround(Math.cos(angle))), sin = Math.fround(scale * Math.fround(Math.sin(angle)));
      const a = this.qkv[begin + j], b = this.qkv[begin + half + j];
      this.qkv[begin + j] = a * cos - b * sin;
      this.qkv[begin + half + j] = b * cos + a * sin;
    }
  }

  /** One head's attention from a position over those from `first` on; leaves the weights in `scores`. */
  head(keys, values, h, first, position) {
    const c = this.config, D = c.headSize, count = position - first + 1, scores = this.scores;
    const base = Math.floor((h * c.kvHeads) / c.heads) * c.columns;
    const slope = this.tensors.slopes ? this.tensors.slopes.floats[h] : 0;
    const q = this.query, columns = c.columns, P = c.padded;
    for (let d = 0; d < D; d++) q[d] = this.qkv[h * D + d];
    let most = -Infinity, total = 0;
    for (let t = 0; t < count; t++) {
      const at = (base + ((first + t) % columns)) * P;
      let a = 0, b = 0, e = 0, f = 0;
      for (let d = 0; d < P; d += 4) {
        a += q[d] * keys[at + d];
        b += q[d + 1] * keys[at + d + 1];
        e += q[d + 2] * keys[at + d + 2];
        f += q[d + 3] * keys[at + d + 3];
      }
      scores[t] = Math.fround((a + b + e + f) * c.scoreScale) - slope * (count - 1 - t);
      if (!(scores[t] <= most)) most = scores[t];
    }
    for (let t = 0; t < count; t++) total += scores[t] = exponential(scores[t] - most);
    for (let t = 0; t < count; t++) scores[t] /= total;
    const end = (base + columns) * P;
    for (let d = 0; d < P; d += 4) {
      let at = (base + (first % columns)) * P + d, a = 0, b = 0, e = 0, f = 0;
      for (let t = 0; t < count; t++) {
        const weight = scores[t];
        a += weight * values[at];
        b += weight * values[at + 1];
        e += weight * values[at + 2];
        f += weight * values[at + 3];
        at += P;
        if (at >= end) at -= columns * P;
      }
      const y = this.y, to = h * D + d;
      y[to] = a;
      if (d + 1 < D) y[to + 1] = b;
      if (d + 2 < D) y[to + 2] = e;
      if (d + 3 < D) y[to + 3] = f;
    }
  }
}

/** A text that a model reads: once it is longer than the block, the window is read anew or slides, as in gptlab. */
class Context {
  /** @param {number[]} ids at least one; only the last block is used. */
  constructor(model, ids) {
    this.model = model;
    this.ids = ids.slice(-model.config.blockSize);
    this.begin = 0;
    this.cache = model.newCache();
    this.logits = new Float32Array(model.config.vocabSize);
  }

  append(id) {
    this.ids.push(id);
  }

  /**
   * Read what was appended.
   * @param {Function} [pause] awaited between tokens; may throw to end it.
   * @returns {Promise<Float32Array>} the logits of the next token, valid until the next call.
   */
  async next(pause = () => undefined) {
    const { blockSize, slides } = this.model.config;
    if (!slides && this.ids.length - this.begin > blockSize) {
      this.begin = this.ids.length - blockSize;
      this.cache.length = 0;
    }
    while (this.begin + this.cache.length < this.ids.length) {
      const at = this.begin + this.cache.length;
      this.model.read(this.cache, this.ids[at], at === this.ids.length - 1 ? this.logits : undefined);
      const waiting = pause();
      if (waiting) await waiting;
    }
    return this.logits;
  }
}

/** Open the model that content.py wrote: its description, and its weights in base64. */
function openModel(description, base64, plain = false) {
  const counts = description.tensors.map(([, , shape]) => shape.reduce((a, b) => a * b, 1));
  const sizes = description.tensors.map(([, kind, [rows]], i) => (kind === "float32" ? 4 * counts[i] : 4 * rows + counts[i]));
  const bytes = fromBase64(base64);
  if (bytes.length !== sizes.reduce((a, b) => a + b, 0)) throw new Error("its weights have another size than it says");
  const tensors = {};
  let at = 0;
  const take = (Kind, count) => {
    const begin = at;
    at += count * Kind.BYTES_PER_ELEMENT;
    return new Kind(bytes.buffer.slice(begin, at));
  };
  description.tensors.forEach(([name, kind, shape], i) => {
    if (kind === "float32") tensors[name] = { shape, floats: take(Float32Array, counts[i]) };
    else tensors[name] = { shape, scales: take(Float32Array, shape[0]), integers: take(Int8Array, counts[i]) };
  });
  return new GPT(description.config, tensors, plain);
}

/** The bytes that base64 stands for. */
function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}
