/** How is the serving layer asked? Reads /v1 only; every failure is a `Refused`. */

import { record } from "./format.js";

const TIMEOUT_MS = 10000;

/** A server's refusal (status, detail, seconds to wait), or no answer at all (status 0). */
export class Refused extends Error {
  constructor(status, detail, retryAfter = 0) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export function address(path, pairs) {
  const query = new URLSearchParams(pairs).toString();
  return query ? `${path}?${query}` : path;
}

export const viewPath = (name) => `/v1/views/${encodeURIComponent(name)}`;

/** Return the JSON object of an address; throws Refused. */
export async function get(url, timeout = TIMEOUT_MS) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), timeout);
  try {
    const headers = { Accept: "application/json" };
    const response = await fetch(url, { signal: abort.signal, cache: "no-store", headers });
    const body = await response.json().catch(() => null);
    if (!response.ok) {
      const detail = body?.detail || body?.title || `HTTP ${response.status}`;
      throw new Refused(response.status, detail, Number(response.headers.get("Retry-After")) || 0);
    }
    return record(body);
  } catch (error) {
    if (error instanceof Refused) throw error;
    throw new Refused(0, error.name === "AbortError" ? `no answer within ${timeout / 1000} s` : "not reachable");
  } finally {
    clearTimeout(timer);
  }
}
