/** How is a value written for people, and what of an answer can be relied on? Times are UTC, as the windows are. */

const wholes = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fractions = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const shorts = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const list = (value) => (Array.isArray(value) ? value : []);
export const record = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export const whole = (value) => wholes.format(value);
export const compact = (value) => shorts.format(value);
export const words = (name) => String(name ?? "").replaceAll("_", " ");

export function number(value) {
  if (!isNumber(value)) return "–";
  return Number.isInteger(value) ? whole(value) : fractions.format(value);
}

/** Any value as text: of a key, a group, a cell. */
export function shown(value) {
  if (value === null || value === undefined) return "(none)";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** A value as a cell of a table of figures. */
export const figure = (value) => (isNumber(value) ? number(value) : shown(value));

/** Sum of what is a number; null when nothing is. */
export function sum(values) {
  const numbers = values.filter(isNumber);
  return numbers.length ? numbers.reduce((total, value) => total + value, 0) : null;
}

/** Milliseconds of an ISO-8601 text, or null. */
export function timeOf(text) {
  const value = typeof text === "string" ? Date.parse(text) : NaN;
  return Number.isNaN(value) ? null : value;
}

export const iso = (ms) => new Date(ms).toISOString().replace(".000Z", "Z");

/** 2026-01-31 07:15:00, with a fraction where there is one. */
export const timestamp = (ms) => iso(ms).replace("T", " ").replace("Z", "");

export const clock = (ms) => new Date(ms).toISOString().slice(11, 16);
export const dayAndClock = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");

export function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const rest = Math.max(0, seconds);
  if (rest < 10) return `${rest.toFixed(1)} s`;
  if (rest < 120) return `${Math.round(rest)} s`;
  if (rest < 7200) return `${Math.floor(rest / 60)} min`;
  if (rest < 172800) return `${Math.floor(rest / 3600)} h ${Math.floor((rest % 3600) / 60)} min`;
  return `${Math.floor(rest / 86400)} d`;
}
