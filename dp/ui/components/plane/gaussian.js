// Standard normal noise that a seed gives again: Mulberry32 (Tommy Ettinger's 32-bit generator) for uniform numbers, and
// the Box-Muller transform, which makes two normal numbers of two uniform ones.
function createGaussian(seed) {
  let state = seed >>> 0;

  function uniform() {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  }

  return function drawPair() {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())); // 1 - u lies in (0, 1]
    const angle = 2 * Math.PI * uniform();
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  };
}
