// Numbers as people read them.

export const count = (number) => number.toLocaleString("en");

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

const threeDigits = (number) =>
  number.toLocaleString("en", { maximumSignificantDigits: Math.max(3, String(Math.trunc(number)).length) });

function scaled(number, step, units) {
  const power = Math.min(Math.floor(Math.log(Math.max(number, 1)) / Math.log(step)), units.length - 1);
  return [threeDigits(number / step ** power), units[power]];
}

export const bytes = (number) => scaled(number, 1000, ["B", "kB", "MB", "GB", "TB"]).join(" ");

export const short = (number) => scaled(number, 1000, ["", "k", "M", "B"]).join("");

export const perSecond = (rate) => (rate < 100 ? rate.toFixed(1) : count(Math.round(rate)));

export const duration = (seconds) =>
  seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`;

export function ago(unixSeconds) {
  const seconds = Math.max(0, Date.now() / 1000 - unixSeconds);
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return plural(Math.floor(seconds / 86400), "day") + " ago";
}
