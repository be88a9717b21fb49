// How the next token is drawn: the filters of gptlab's sampling.py, in their order, and its random numbers.

const LN2 = Math.log(2);

/** Numbers in [0, 1): numpy's RandomState, a Mersenne Twister, as `RandomNumbers` draws from it. */
class RandomNumbers {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt(seed) % 4294967296n);
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.at = 624;
  }

  word() {
    if (this.at === 624) this.twist();
    let y = this.state[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.at = 0;
  }

  draw() {
    const high = this.word(), low = this.word();
    return ((high & 0x1fffff) * 4294967296 + low) / 9007199254740992;
  }
}

/** The model's own distribution, before any filter. */
function softmax(logits) {
  let most = -Infinity, sum = 0;
  for (const logit of logits) most = Math.max(most, logit);
  if (!Number.isFinite(most)) throw new Error("the model's logits are no numbers: its weights are damaged");
  const found = Float64Array.from(logits, (logit) => Math.exp(logit - most));
  for (const each of found) sum += each;
  return found.map((each) => each / sum);
}

/** The ids of the likeliest tokens, the likeliest first. */
function likeliest(probabilities, count) {
  const found = [];
  for (let id = 0; id < probabilities.length; id++) {
    if (found.length === count && !(probabilities[id] > probabilities[found[count - 1]])) continue;
    let at = found.length;
    while (at > 0 && probabilities[id] > probabilities[found[at - 1]]) at--;
    found.splice(at, 0, id);
    if (found.length > count) found.pop();
  }
  return found;
}

function argmax(numbers) {
  let best = 0;
  for (let i = 1; i < numbers.length; i++) if (numbers[i] > numbers[best]) best = i;
  return best;
}

/**
 * The distribution from which the next token is drawn.
 * @param {Float32Array} logits the model's.
 * @param {object} how {temperature, topK, topP, minP, repetitionPenalty}; null: no such filter; a temperature of 0 is greedy.
 * @param {number[]} ids the tokens so far, for the repetition penalty.
 */
function probabilities(logits, how, ids = []) {
  const { temperature = 1, topK = null, topP = null, minP = null, repetitionPenalty = 1 } = how;
  const scores = Float64Array.from(logits);
  if (repetitionPenalty !== 1) {
    for (const id of new Set(ids)) scores[id] = scores[id] > 0 ? scores[id] / repetitionPenalty : scores[id] * repetitionPenalty;
  }
  const best = argmax(scores), most = scores[best];
  if (!Number.isFinite(most)) throw new Error("the model's logits are no numbers: its weights are damaged");
  if (temperature === 0) return scores.map((_, id) => (id === best ? 1 : 0));
  for (let id = 0; id < scores.length; id++) scores[id] = (scores[id] - most) / temperature;
  if (topK !== null && topK < scores.length) {
    const kept = new Set(likeliest(scores, topK));
    for (let id = 0; id < scores.length; id++) if (!kept.has(id)) scores[id] = -Infinity;
  }
  const found = softmax(scores);
  if (topP !== null && topP < 1) {
    let before = 0;
    for (const id of [...found.keys()].sort((a, b) => found[b] - found[a] || a - b)) {
      const each = found[id];
      if (before >= topP) found[id] = 0;
      before += each;
    }
  }
  if (minP !== null) {
    const least = minP * found[argmax(found)];
    for (let id = 0; id < found.length; id++) if (found[id] < least) found[id] = 0;
  }
  const sum = found.reduce((a, b) => a + b, 0);
  return found.map((each) => each / sum);
}

/** Draw a token; `numbers` are untouched by a greedy choice without a penalty, as in gptlab. */
function draw(logits, how, ids, numbers) {
  if (how.temperature === 0 && (how.repetitionPenalty ?? 1) === 1) return argmax(logits);
  const found = probabilities(logits, how, ids);
  const total = found.reduce((a, b) => a + b, 0);
  const share = numbers.draw() * total;
  let sum = 0, last = 0;
  for (let id = 0; id < found.length; id++) {
    sum += found[id];
    if (found[id] > 0) last = id;
    if (sum > share) return id;
  }
  return last;
}

/** How surprising a token of this probability is, in bits. */
function bitsOf(probability) {
  return -Math.log(probability) / LN2;
}
