// The modules that touch no page, in node's own runner.
import assert from "node:assert/strict";
import { test } from "node:test";

import { floorPath } from "../../static/js/components/sparklines.js";
import { sideBySide, sumOf } from "../../static/js/data/compare-days.js";
import { isOld, LABEL, resolve, sentence } from "../../static/js/data/connection-status.js";
import { Counters } from "../../static/js/data/counters.js";
import { Series, ticks } from "../../static/js/data/series.js";
import { csv } from "../../static/js/lib/csv.js";
import { comparison, countdown, day, dayEnd, plural, size } from "../../static/js/lib/format.js";
import { link, parse } from "../../static/js/lib/router.js";

const HOSTILE = ["a/b?c=d#e", "50% off", "<img src=x>", "ورود", "👩‍💻", "..%2f", "a&b=c", "+", "'"];

test("an address leads to its event and back, whatever the name", () => {
  for (const name of HOSTILE) {
    const { view, name: found, query } = parse(link("event", name, { range: "week", none: "" }));
    assert.deepEqual([view, found, query.get("range"), query.has("none")], ["event", name, "week", false]);
  }
});

test("an address that nobody made is no error", () => {
  assert.equal(parse("").view, "overview");
  assert.equal(parse("#main").view, "main");
  assert.equal(parse("#/event/%E0%A4%A").name, "%E0%A4%A");
});

test("a file keeps its cells, and none of them is a formula", () => {
  assert.equal(csv([["event", "count"], ['say "hi", you', 3]]), '"event","count"\r\n"say ""hi"", you",3\r\n');
  for (const sign of "=+-@\t\r\n＝＋－＠") assert.equal(csv([[`${sign}1+1`, 2]]), `"'${sign}1+1",2\r\n`);
  assert.equal(csv([["a;=1+1", 2]]), '"a;=1+1",2\r\n');
});

test("counts are absolute, so a repeated message changes nothing", () => {
  const counters = new Counters();
  counters.replace(["a"], [5]);
  assert.equal(counters.apply([[0, 7], [1, 2]], ["b"]), 4);
  assert.equal(counters.apply([[0, 7], [1, 2]], []), 0);
  assert.deepEqual([counters.total, counters.of("b"), counters.of("c")], [9, 2, 0]);
  assert.deepEqual(counters.take(), { dirty: new Set([0, 1]), remade: true });
  assert.deepEqual(counters.take(), { dirty: new Set(), remade: false });
});

test("the largest come first, and equal ones in the server's order", () => {
  const counters = new Counters();
  counters.replace(["a", "b", "c", "d"], [1, 3, 3, 2]);
  assert.deepEqual(counters.top(3).map(({ name }) => name), ["b", "c", "d"]);
  const many = Array.from({ length: 2000 }, (_, i) => (i * 7919) % 1999);
  counters.replace(many.map(String), many);
  assert.deepEqual(counters.top(50).map(({ count }) => count), [...many].sort((a, b) => b - a).slice(0, 50));
});

const minutes = (...counts) => counts.map((count, i) => ({ start: new Date(i * 60_000).toISOString(), count }));

test("a series goes on with the clock and keeps its length, and so does the period before", () => {
  const series = new Series("minute", 3);
  series.load(minutes(1, 2, 3, 4, 5, 6));
  series.add(10, 5 * 60_000 + 1000);
  assert.deepEqual(series.points.map(({ count }) => count), [4, 5, 16]);
  assert.equal(series.advance(7 * 60_000), true);
  assert.deepEqual(series.points.map(({ count }) => count), [16, 0, 0]);
  assert.deepEqual(series.before.map(({ count }) => count), [3, 4, 5]);
  assert.deepEqual(series.over(), { now: 16, before: 7 });
  assert.equal(series.advance(90 * 24 * 3600_000), true); // a laptop that slept for months
  assert.equal(series.points.length, 3);
});

test("a rate is that of the last 60 seconds", () => {
  const series = new Series("minute", 2);
  assert.equal(series.perMinute(0), null);
  series.load(minutes(60, 10));
  assert.equal(series.perMinute(60_000 + 15_000), 55);
});

test("an axis has round numbers up to the largest", () => {
  assert.deepEqual(ticks(0), [0, 1, 2, 3, 4]);
  for (const most of [1, 7, 99, 1234, 9_007_199_254_740_991]) {
    const values = ticks(most);
    assert.ok(values.length <= 6 && values.at(-1) >= most, `${most}: ${values}`);
  }
});

test("what is said of two numbers is true", () => {
  assert.equal(comparison(3, 3), "as many as");
  assert.equal(comparison(3, 0), "3 more than");
  assert.equal(comparison(112, 100), "12% more than");
  assert.equal(comparison(50, 100), "50% fewer than");
  assert.equal(comparison(500, 100), "5 times as many as");
});

test("days are the service's, wherever the reader is", () => {
  assert.match(day("2026-11-23T00:00:00+13:00"), /23/);
  assert.match(dayEnd("2026-11-24T00:00:00+05:30"), /00:00 of the service’s clock \(UTC\+05:30\)/);
  assert.equal(countdown(3 * 3600_000 + 12 * 60_000 + 44_001), "03:12:45");
  assert.equal(countdown(-5), "00:00:00");
  assert.deepEqual([plural(1, "hit"), plural(1234, "hit"), size(999), size(12e6)], ["1 hit", "1,234 hits", "999B", "12MB"]);
});

test("the worst is said, and each state has its words", () => {
  const ok = { live: "live", paused: false, limited: false, health: { status: "ok", staleSeconds: null } };
  assert.equal(resolve(ok), "live");
  assert.equal(resolve({ ...ok, limited: true }), "limited");
  assert.equal(resolve({ ...ok, limited: true, paused: true }), "paused");
  assert.equal(resolve({ ...ok, live: "degraded" }), "degraded");
  assert.equal(resolve({ ...ok, live: "degraded", health: { status: "degraded", staleSeconds: 3 } }), "spooling");
  assert.equal(resolve({ ...ok, health: { status: "down", staleSeconds: 3 } }), "down");
  for (const live of ["offline", "reconnecting", "locked", "stale"]) {
    assert.equal(resolve({ ...ok, live, paused: true, limited: true }), live);
    assert.equal(isOld(live), live !== "locked"); // behind a lock there are no numbers
  }
  for (const name of Object.keys(LABEL)) {
    const said = sentence({ name, reasons: ["r"], asOf: 0, hint: false, limitedMs: 1, health: null, waiting: 2 });
    assert.ok(said.length > 3, name);
  }
});

test("a day is all its parts, and two days stand side by side", () => {
  const a = sumOf({ parts: [{ counts: { x: 1, y: 5 } }, { counts: { x: 2 } }] });
  assert.deepEqual([...a], [["x", 3], ["y", 5]]);
  assert.deepEqual(sideBySide(a, new Map([["z", 9], ["x", 1]])), [
    { name: "y", count: 5, other: 0 }, { name: "x", count: 3, other: 1 }, { name: "z", count: 0, other: 9 }]);
});

test("a floor has a post for each minute in which something was counted", () => {
  const series = new Series();
  series.load(minutes(...Array.from({ length: 60 }, (_, i) => i % 2)));
  assert.equal(floorPath(series).split("M").length - 1, 30);
});
