// Word statistics of ?text= or of the request's body, as JSON.
const text = env.text ?? body;
const words = [...text.toLowerCase().matchAll(/[\p{L}\p{N}']+/gu)].map((match) => match[0]);
const counts = new Map();
for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);

const byCount = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
const longest = words.reduce((best, word) => (word.length > best.length ? word : best), "");

console.log(JSON.stringify({
  words: words.length,
  distinct: counts.size,
  longest,
  top: Object.fromEntries(byCount.slice(0, Number(env.top ?? 3))),
}));
