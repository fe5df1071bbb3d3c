// The parts of the page: text of 7 bits a character (dense.py), then gzip or LZMA.

const FORBIDDEN = [0, 13, 60];
const FIRST = 0xa0;

/** The bytes of a text that dense.py wrote; `size` is their number. */
function sparse(text, size) {
  const bytes = new Uint8Array(size);
  let at = 0, bits = 0, kept = 0;
  const take = (symbol) => {
    kept = ((kept << 7) | symbol) & 0x7fff;
    bits += 7;
    if (bits >= 8 && at < size) bytes[at++] = kept >> (bits -= 8);
  };
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code < 128) take(code);
    else {
      take(FORBIDDEN[(code - FIRST) >> 7]);
      take((code - FIRST) & 127);
    }
  }
  return bytes;
}

async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Decodes raw LZMA1 with lc = 3, lp = pb = 0 to `size` bytes (the specification by I. Pavlov, LZMA SDK). */
function unlzma(input, size) {
  const out = new Uint8Array(size);
  const fresh = (n) => new Uint16Array(n).fill(1024);
  const literals = fresh(0x300 << 3), isMatch = fresh(12), isRep = fresh(12), isRep0 = fresh(12), isRep1 = fresh(12);
  const isRep2 = fresh(12), isRep0Long = fresh(12), slots = [0, 1, 2, 3].map(() => fresh(64));
  const special = fresh(128), align = fresh(16);
  const lengths = [0, 1].map(() => ({ choice: fresh(2), low: fresh(8), mid: fresh(8), high: fresh(256) }));
  let range = 0xffffffff, code = 0, next = 1;
  while (next < 5) code = ((code << 8) | input[next++]) >>> 0;

  function bit(probabilities, i) {
    const p = probabilities[i], bound = (range >>> 11) * p;
    let found = 0;
    if (code < bound) {
      range = bound;
      probabilities[i] = p + ((2048 - p) >> 5);
    } else {
      range -= bound;
      code -= bound;
      probabilities[i] = p - (p >> 5);
      found = 1;
    }
    if (range < 0x1000000) {
      range = (range << 8) >>> 0;
      code = ((code << 8) | input[next++]) >>> 0;
    }
    return found;
  }
  function tree(probabilities, depth) {
    let m = 1;
    for (let i = 0; i < depth; i++) m = (m << 1) | bit(probabilities, m);
    return m - (1 << depth);
  }
  function reversed(probabilities, start, depth) {
    let m = 1, value = 0;
    for (let i = 0; i < depth; i++) {
      const b = bit(probabilities, start + m);
      m = (m << 1) | b;
      value |= b << i;
    }
    return value;
  }
  function direct(depth) {
    let value = 0;
    for (let i = 0; i < depth; i++) {
      range >>>= 1;
      const b = code >= range ? 1 : 0;
      if (b) code -= range;
      value = (value << 1) | b;
      if (range < 0x1000000) {
        range = (range << 8) >>> 0;
        code = ((code << 8) | input[next++]) >>> 0;
      }
    }
    return value;
  }
  function length(coder) {
    if (!bit(coder.choice, 0)) return tree(coder.low, 3);
    return bit(coder.choice, 1) ? 16 + tree(coder.high, 8) : 8 + tree(coder.mid, 3);
  }
  function distance(count) {
    const slot = tree(slots[Math.min(count, 3)], 6);
    if (slot < 4) return slot;
    const depth = (slot >> 1) - 1, base = (2 | (slot & 1)) << depth;
    if (slot < 14) return base + reversed(special, base - slot, depth);
    return base + (direct(depth - 4) << 4) + reversed(align, 0, 4);
  }

  let state = 0, at = 0, rep0 = 0, rep1 = 0, rep2 = 0, rep3 = 0;
  while (at < size) {
    if (!bit(isMatch, state)) {
      const start = 0x300 * ((at ? out[at - 1] : 0) >> 5);
      let symbol = 1;
      if (state >= 7) {
        let match = out[at - rep0 - 1];
        while (symbol < 0x100) {
          const expected = (match >> 7) & 1;
          match <<= 1;
          const b = bit(literals, start + ((1 + expected) << 8) + symbol);
          symbol = (symbol << 1) | b;
          if (b !== expected) break;
        }
      }
      while (symbol < 0x100) symbol = (symbol << 1) | bit(literals, start + symbol);
      out[at++] = symbol;
      state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
      continue;
    }
    let count;
    if (bit(isRep, state)) {
      if (!bit(isRep0, state)) {
        if (!bit(isRep0Long, state)) {
          state = state < 7 ? 9 : 11;
          out[at] = out[at - rep0 - 1];
          at++;
          continue;
        }
      } else {
        let chosen = rep1;
        if (bit(isRep1, state)) {
          chosen = rep2;
          if (bit(isRep2, state)) {
            chosen = rep3;
            rep3 = rep2;
          }
          rep2 = rep1;
        }
        rep1 = rep0;
        rep0 = chosen;
      }
      count = length(lengths[1]);
      state = state < 7 ? 8 : 11;
    } else {
      rep3 = rep2;
      rep2 = rep1;
      rep1 = rep0;
      count = length(lengths[0]);
      state = state < 7 ? 7 : 10;
      rep0 = distance(count);
    }
    for (let left = Math.min(count + 2, size - at); left > 0; left--, at++) out[at] = out[at - rep0 - 1];
  }
  return out;
}

/** The bytes of a part of the page, by the id of its element. */
async function part(id) {
  const element = document.getElementById(id);
  const bytes = sparse(element.textContent, Number(element.dataset.size));
  element.remove();
  return element.dataset.code === "lzma" ? unlzma(bytes, Number(element.dataset.unpacked)) : gunzip(bytes);
}

/** All weights in float32, one tensor behind the other, from what weights.py stored. */
function weightsOf(directory, halves, singles) {
  const total = directory.reduce((sum, tensor) => sum + tensor.size, 0), count = halves.length / 2;
  const pool = new Float32Array(total), exact = new Float32Array(singles.buffer, singles.byteOffset, singles.length / 4);
  const table = halfValues();
  let at = 0, half = 0, single = 0;
  for (const { form, size, rows } of directory) {
    if (form === "float32") {
      pool.set(exact.subarray(single, single + size), at);
      single += size;
    } else {
      const width = rows ? size / rows : size;
      for (let i = 0; i < size; i++, half++) {
        const value = table[(halves[half] << 8) | halves[count + half]];
        pool[at + i] = rows ? value * exact[single + Math.floor(i / width)] : value;
      }
      single += rows;
    }
    at += size;
  }
  return new Uint8Array(pool.buffer);
}

/** The numbers that the 65,536 patterns of float16 stand for. */
function halfValues() {
  return Float32Array.from({ length: 65536 }, (_, code) => {
    const exponent = (code >> 10) & 31, mantissa = code & 1023;
    const size = exponent ? (1 + mantissa / 1024) * 2 ** (exponent - 15) : (mantissa / 1024) * 2 ** -14;
    return code & 0x8000 ? -size : size;
  });
}
