// Products of 8-bit numbers, in WebAssembly where the browser has its SIMD, or else in plain JavaScript: each group's sum
// is one of integers, and groups are added in float64 in one order, so that both have the same bits.

const TOGETHER = 128; // numbers of what a layer reads that share a scale, as in quantised.py
const STEP = 32; // numbers of a step of the kernel's inner loop
const PAGE_BYTES = 65536;

/** Round up to a multiple. */
function upTo(count, unit) {
  return Math.ceil(count / unit) * unit;
}

/** Matrices of 8 bits and the memory that they lie in, and what multiplies them. */
class Products {
  /**
   * @param {number[][]} shapes rows and columns of all matrices that will be placed.
   * @param {boolean} [plain] use no WebAssembly.
   */
  constructor(shapes, plain = false) {
    const widest = Math.max(STEP, ...shapes.map(([, columns]) => upTo(columns, STEP)));
    const tallest = Math.max(1, ...shapes.map(([rows]) => rows));
    const groups = Math.ceil(widest / TOGETHER);
    const sizes = [8 * groups, 4 * tallest, 2 * widest, ...shapes.map(([rows, columns]) => rows * upTo(columns, STEP))];
    const bytes = sizes.reduce((sum, size) => sum + upTo(size, STEP), 0);
    const memory = plain ? null : wasmMemory(bytes);
    this.buffer = memory ? memory.buffer : new ArrayBuffer(bytes);
    this.used = 0;
    [this.scalesAt, this.outputsAt, this.numbersAt] = sizes.slice(0, 3).map((size) => this.take(size));
    this.scales = new Float64Array(this.buffer, this.scalesAt, groups);
    this.outputs = new Float32Array(this.buffer, this.outputsAt, tallest);
    this.numbers = new Int16Array(this.buffer, this.numbersAt, widest); // 16 bits wide, as the kernel multiplies them
    this.kernel = (memory && wasmKernel(memory)) || plainKernel(this.buffer);
  }

  take(size) {
    const at = this.used;
    this.used += upTo(size, STEP);
    return at;
  }

  /** Copy a matrix into the memory; returns where it lies. */
  place(integers, rows, columns) {
    const stride = upTo(columns, STEP);
    const at = this.take(rows * stride);
    const target = new Int8Array(this.buffer, at, rows * stride);
    for (let row = 0; row < rows; row++) {
      target.set(integers.subarray(row * columns, (row + 1) * columns), row * stride);
    }
    return { at, rows, columns, stride };
  }

  /** Multiply a vector, rounded to 8 bits, by a placed matrix; returns sums (rows), valid until the next call. */
  multiply(matrix, x) {
    this.round(x, matrix.columns, matrix.stride);
    this.kernel(matrix.at, this.numbersAt, this.scalesAt, this.outputsAt, matrix.rows, matrix.stride);
    return this.outputs;
  }

  /** Round numbers to 8 bits, with a scale for each group, as `quantised.rounded_inputs` does. */
  round(x, count, stride) {
    const toInteger = 6755399441055744; // 1.5 * 2^52: added, it rounds to the nearest integer, ties to even
    for (let begin = 0, g = 0; begin < count; begin += TOGETHER, g++) {
      const end = Math.min(begin + TOGETHER, count);
      let most = 0;
      for (let j = begin; j < end; j++) most = Math.max(most, Math.abs(x[j])); // not a number, if one of them is none
      const inverse = most > 0 ? Math.fround(127 / most) : 0;
      for (let j = begin; j < end; j++) this.numbers[j] = x[j] * inverse + toInteger - toInteger;
      this.scales[g] = Number.isFinite(most) ? Math.fround(most / 127) : NaN;
    }
    this.numbers.fill(0, count, stride);
  }
}

/** The kernel in JavaScript: outputs[row] = the sum over groups of (the sum of products) * scale. */
function plainKernel(buffer) {
  const bytes = new Int8Array(buffer);
  return (w, numbersAt, scalesAt, outputsAt, rows, stride) => {
    const x = new Int16Array(buffer, numbersAt, stride);
    const scales = new Float64Array(buffer, scalesAt);
    const outputs = new Float32Array(buffer, outputsAt, rows);
    for (let row = 0; row < rows; row++, w += stride) {
      let total = 0;
      for (let begin = 0, g = 0; begin < stride; begin += TOGETHER, g++) {
        const end = Math.min(begin + TOGETHER, stride);
        let sum = 0;
        for (let j = begin; j < end; j += 4) {
          sum =
            (sum +
              bytes[w + j] * x[j] +
              bytes[w + j + 1] * x[j + 1] +
              bytes[w + j + 2] * x[j + 2] +
              bytes[w + j + 3] * x[j + 3]) |
            0;
        }
        total += sum * scales[g];
      }
      outputs[row] = total;
    }
  };
}

/** Memory that both can read; null where there is no WebAssembly. */
function wasmMemory(bytes) {
  try {
    return new WebAssembly.Memory({ initial: Math.ceil(bytes / PAGE_BYTES) });
  } catch {
    return null;
  }
}

/** The kernel in WebAssembly; null where its SIMD is missing or forbidden. */
function wasmKernel(memory) {
  try {
    return new WebAssembly.Instance(new WebAssembly.Module(kernelModule()), { m: { m: memory } }).exports.f;
  } catch {
    return null;
  }
}

/** The kernel as a module, assembled by hand. */
function kernelModule() {
  const unsigned = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...unsigned(n >> 7)]);
  const section = (id, ...content) => [id, ...unsigned(content.length), ...content];
  const I32 = 0x7f, F64 = 0x7c, V128 = 0x7b, VOID = 0x40;
  const [w, x, scale, y, rows, stride, left, numbers, groupLeft, sum, total] = [...Array(11).keys()];
  const get = (local) => [0x20, local], set = (local) => [0x21, local], tee = (local) => [0x22, local];
  const constant = (n) => [0x41, ...(n < 64 ? [n] : [(n & 127) | 128, n >> 7])]; // below 8192
  const simd = (n) => [0xfd, ...unsigned(n)];
  const add = [0x6a], subtract = [0x6b];
  const increase = (local, by) => [...get(local), ...constant(by), ...add, ...set(local)];
  const loop = (...body) => [0x03, VOID, ...body.flat(), 0x0b];
  const again = [0x0d, 0]; // br_if to the loop
  const lane = (n) => [...get(sum), ...simd(27), n];
  const body = [
    loop(
      [0x44, 0, 0, 0, 0, 0, 0, 0, 0], set(total), // f64.const 0
      get(x), set(numbers),
      get(stride), set(left),
      loop(
        [...simd(12), ...Array(16).fill(0)], set(sum), // v128.const 0
        // groupLeft = min(left, TOGETHER)
        get(left), constant(TOGETHER), get(left), constant(TOGETHER), [0x48, 0x1b], set(groupLeft),
        get(left), get(groupLeft), subtract, set(left),
        loop(
          get(sum),
          ...[0, 1, 2, 3].map((part) => [...get(w), ...simd(1), 0, 8 * part, ...get(numbers), ...simd(0), 0, 16 * part, ...simd(186), ...simd(174)]),
          set(sum), // v128.load8x8_s, v128.load, i32x4.dot_i16x8_s, i32x4.add
          increase(w, STEP), increase(numbers, 2 * STEP),
          get(groupLeft), constant(STEP), subtract, tee(groupLeft), again,
        ),
        lane(0), lane(1), add, lane(2), add, lane(3), add, [0xb7], // f64.convert_i32_s
        get(scale), [0x2b, 3, 0], [0xa2], // f64.load, f64.mul
        get(total), [0xa0], set(total), // f64.add
        increase(scale, 8),
        get(left), again,
      ),
      get(y), get(total), [0xb6], [0x38, 2, 0], // f32.demote_f64, f32.store
      increase(y, 4),
      // scale -= 8 * groups
      get(scale), get(stride), constant(TOGETHER - 1), add, constant(7), [0x76], constant(3), [0x74], subtract, set(scale),
      get(rows), constant(1), subtract, tee(rows), again,
    ),
  ].flat();
  const locals = [3, 3, I32, 1, V128, 1, F64];
  const code = [...locals, ...body, 0x0b];
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, 1, 0x60, 6, I32, I32, I32, I32, I32, I32, 0),
    ...section(2, 1, 1, 0x6d, 1, 0x6d, 2, 0, 0), // memory "m" "m"
    ...section(3, 1, 0),
    ...section(7, 1, 1, 0x66, 0, 0), // exports "f"
    ...section(10, 1, ...unsigned(code.length), ...code),
  ]);
}
