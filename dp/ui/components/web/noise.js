// The random numbers of an image, as the library draws them (dp/diffusion/noise.py): torch's CPU generator, so that a seed
// gives the same image here.

// Normal numbers from a seed: MT19937, Matsumoto & Nishimura 1998, whose words give uniform numbers of 24 bits, and of
// those Box-Muller in blocks of 16, number j together with j + 8. count: at least 16, since torch draws fewer in
// another way.
function createGenerator(seed) {
  const [SIZE, HALF, BLOCK] = [624, 397, 16];
  const words = new Uint32Array(SIZE);
  let next = SIZE;
  words[0] = seed;
  for (let i = 1; i < SIZE; i++) words[i] = Math.imul(1812433253, words[i - 1] ^ (words[i - 1] >>> 30)) + i;

  function twist() {
    for (let i = 0; i < SIZE; i++) {
      const mixed = (words[i] & 0x80000000) | (words[(i + 1) % SIZE] & 0x7fffffff);
      words[i] = words[(i + HALF) % SIZE] ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    next = 0;
  }

  function drawUniform() {
    if (next === SIZE) twist();
    let word = words[next++];
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    word ^= word >>> 18;
    return (word & 0xffffff) / 0x1000000;
  }

  function transform(values, start) {
    for (let j = start; j < start + BLOCK / 2; j++) {
      const radius = Math.sqrt(-2 * Math.log(1 - values[j]));
      const angle = 2 * Math.PI * values[j + BLOCK / 2];
      [values[j], values[j + BLOCK / 2]] = [radius * Math.cos(angle), radius * Math.sin(angle)];
    }
  }

  function draw(count) {
    const values = Float32Array.from({ length: count }, drawUniform);
    for (let start = 0; start + BLOCK <= count; start += BLOCK) transform(values, start);
    if (count % BLOCK) {
      // The last block overlaps the one before, and is drawn anew.
      for (let j = count - BLOCK; j < count; j++) values[j] = drawUniform();
      transform(values, count - BLOCK);
    }
    return values;
  }

  return { draw };
}

// One stream per image: image i has seed + i, or lies between `seed` and `walkTo`.
function makeStreams({ images, seed, walkTo = null }) {
  return Array.from({ length: images }, (_, i) =>
    walkTo === null ? createGenerator(seed + i) : createWalkStream(seed, walkTo, i / (images - 1)),
  );
}

function createWalkStream(seed, other, fraction) {
  const [from, to] = [createGenerator(seed), createGenerator(other)];
  return { draw: (count) => slerp(from.draw(count), to.draw(count), fraction) };
}

// Interpolate spherically between two draws. Shoemake 1985, sec. 3.3
function slerp(a, b, fraction) {
  if (fraction === 0 || fraction === 1) return fraction ? b : a;
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const angle = Math.acos(clamp(dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b)), -1, 1));
  const sine = Math.sin(angle);
  if (sine < 1e-6) return a; // the two draws are equal
  return a.map((value, i) => (Math.sin((1 - fraction) * angle) * value + Math.sin(fraction * angle) * b[i]) / sine);
}
