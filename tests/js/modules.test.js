// Tests of the modules that do not touch the DOM, in Node's test runner.
import assert from "node:assert/strict";
import { test } from "node:test";

import { sparklinePath } from "../../static/js/components/sparklines.js";
import { compareDays, countsOfDay } from "../../static/js/data/compare-days.js";
import { currentStatus, describe, isOutdated, LABELS } from "../../static/js/data/connection-status.js";
import { Counters } from "../../static/js/data/counters.js";
import { compareWithEarlierDays } from "../../static/js/data/earlier-days.js";
import { goalParts, Goals } from "../../static/js/data/goals.js";
import { notesOfBars } from "../../static/js/data/notes.js";
import { endOfMonth, parseRange, pointsOf } from "../../static/js/data/ranges.js";
import { axisTicks, Series } from "../../static/js/data/series.js";
import { csv } from "../../static/js/lib/csv.js";
import { byteSize, comparison, countdown, dayEnd, longDate, plural, ratio } from "../../static/js/lib/format.js";
import { link, parseHash } from "../../static/js/lib/router.js";

const HOSTILE_NAMES = ["a/b?c=d#e", "50% off", "<img src=x>", "ورود", "👩‍💻", "..%2f", "a&b=c", "+", "'"];

test("a link to an event with any name parses back to that name", () => {
  for (const name of HOSTILE_NAMES) {
    const { view, name: parsed, query } = parseHash(link("event", name, { range: "week", none: "" }));
    assert.deepEqual([view, parsed, query.get("range"), query.has("none")], ["event", name, "week", false]);
  }
});

test("an invalid hash does not raise an error", () => {
  assert.equal(parseHash("").view, "overview");
  assert.equal(parseHash("#main").view, "main");
  assert.equal(parseHash("#/event/%E0%A4%A").name, "%E0%A4%A");
});

test("a CSV file keeps its cells, and no cell is a formula", () => {
  assert.equal(csv([["event", "count"], ['say "hi", you', 3]]), '"event","count"\r\n"say ""hi"", you",3\r\n');
  for (const sign of "=+-@\t\r\n＝＋－＠") assert.equal(csv([[`${sign}1+1`, 2]]), `"'${sign}1+1",2\r\n`);
  assert.equal(csv([["a;=1+1", 2]]), '"a;=1+1",2\r\n');
});

test("counts are absolute, so a repeated message changes nothing", () => {
  const counters = new Counters();
  counters.replace(["a"], [5]);
  assert.equal(counters.apply([[0, 7], [1, 2]], ["b"]), 4);
  assert.equal(counters.apply([[0, 7], [1, 2]], []), 0);
  assert.deepEqual([counters.total, counters.countOf("b"), counters.countOf("c")], [9, 2, 0]);
  assert.deepEqual(counters.drain(), { dirty: new Set([0, 1]), full: true });
  assert.deepEqual(counters.drain(), { dirty: new Set(), full: false });
});

test("only live changes are new hits: not a snapshot, not a correction", () => {
  const counters = new Counters();
  counters.replace(["a", "b"], [500, 7]);
  assert.equal(counters.apply([[0, 503], [1, 4]], []), 3);
  counters.replace(["b", "a"], [90, 600]);
  assert.equal(counters.apply([[0, 91]], []), 1);
  assert.deepEqual([counters.receivedOf("a"), counters.receivedOf("b"), counters.receivedOf("c")], [3, 1, 0]);
});

test("time before the first count is unknown, and is not compared", () => {
  const days = (...counts) => counts.map((count, i) => ({ start: `2026-11-2${i}T00:00:00+00:00`, count }));
  const series = new Series("day", 2);
  series.load(days(0, 4, 5, 6), "2026-11-20");
  assert.deepEqual(series.totals(), { all: 11, completed: 5, previous: 0 });
  series.load(days(0, 4, 5, 6), "2026-11-21");
  assert.deepEqual(series.previous, []);
  series.load(days(0, 0, 0, 6), "");
  assert.deepEqual(series.points.map(({ known }) => known), [false, true]);
});

test("the largest counts come first, and equal ones keep the server's order", () => {
  const counters = new Counters();
  counters.replace(["a", "b", "c", "d"], [1, 3, 3, 2]);
  assert.deepEqual(counters.top(3).map(({ name }) => name), ["b", "c", "d"]);
  const many = Array.from({ length: 2000 }, (_, i) => (i * 7919) % 1999);
  counters.replace(many.map(String), many);
  assert.deepEqual(counters.top(50).map(({ count }) => count), [...many].sort((a, b) => b - a).slice(0, 50));
});

const minutePoints = (...counts) => counts.map((count, i) => ({ start: new Date(i * 60_000).toISOString(), count }));
const countsOf = (buckets) => buckets.map(({ count }) => count);

test("a series advances with the clock and keeps the length of both periods", () => {
  const series = new Series("minute", 3);
  series.load(minutePoints(1, 2, 3, 4, 5, 6));
  series.add(10, 5 * 60_000 + 1000);
  assert.deepEqual(countsOf(series.points), [4, 5, 16]);
  assert.equal(series.advance(7 * 60_000), true);
  assert.deepEqual(countsOf(series.points), [16, 0, 0]);
  assert.deepEqual(countsOf(series.previous), [3, 4, 5]);
  assert.deepEqual(series.totals(), { all: 16, completed: 16, previous: 7 });
  // A laptop may sleep for months.
  assert.equal(series.advance(90 * 24 * 3600_000), true);
  assert.equal(series.points.length, 3);
});

test("the hits per minute are those of the last 60 seconds", () => {
  const series = new Series("minute", 2);
  assert.equal(series.perMinute(0), null);
  series.load(minutePoints(60, 10));
  assert.equal(series.perMinute(60_000 + 15_000), 55);
});

test("an axis has round numbers up to the largest count", () => {
  assert.deepEqual(axisTicks(0), [0, 1, 2, 3, 4]);
  for (const max of [1, 7, 99, 1234, 9_007_199_254_740_991]) {
    const ticks = axisTicks(max);
    assert.ok(ticks.length <= 6 && ticks.at(-1) >= max, `${max}: ${ticks}`);
  }
});

test("two numbers are compared in words", () => {
  assert.equal(comparison(3, 3), "as many as");
  assert.equal(comparison(3, 0), "3 more than");
  assert.equal(comparison(112, 100), "12% more than");
  assert.equal(comparison(50, 100), "50% fewer than");
  assert.equal(comparison(500, 100), "5 times as many as");
  assert.deepEqual([ratio(112, 100), ratio(0, 9), ratio(4, 4), ratio(3, 0), ratio(0, 0)], ["12%", "100%", "0%", "from 0", "0%"]);
  assert.deepEqual([ratio(1200, 100), ratio(998, 1000)], ["12×", "0.2%"]);
});

test("days are those of the server in every time zone", () => {
  assert.match(longDate("2026-11-23T00:00:00+13:00"), /23/);
  assert.match(dayEnd("2026-11-24T00:00:00+05:30"), /00:00 server time \(UTC\+05:30\)/);
  assert.equal(countdown(3 * 3600_000 + 12 * 60_000 + 44_001), "03:12:45");
  assert.equal(countdown(-5), "00:00:00");
  assert.deepEqual([plural(1, "hit"), plural(1234, "hit"), byteSize(999), byteSize(12e6)], ["1 hit", "1,234 hits", "999B", "12MB"]);
});

test("the worst status wins, and each status has a label and a sentence", () => {
  const ok = { connection: "live", paused: false, limited: false, health: { status: "ok", staleSeconds: null } };
  assert.equal(currentStatus(ok), "live");
  assert.equal(currentStatus({ ...ok, limited: true }), "limited");
  assert.equal(currentStatus({ ...ok, limited: true, paused: true }), "paused");
  assert.equal(currentStatus({ ...ok, connection: "degraded" }), "degraded");
  assert.equal(currentStatus({ ...ok, connection: "degraded", health: { status: "degraded", staleSeconds: 3 } }), "spooling");
  assert.equal(currentStatus({ ...ok, health: { status: "down", staleSeconds: 3 } }), "down");
  for (const connection of ["offline", "reconnecting", "locked", "stale"]) {
    assert.equal(currentStatus({ ...ok, connection, paused: true, limited: true }), connection);
    // A locked page shows no numbers.
    assert.equal(isOutdated(connection), connection !== "locked");
  }
  assert.deepEqual([LABELS.stale, LABELS.limited, LABELS.spooling], ["Not responding", "Rate limited", "Redis unreachable"]);
  for (const name of Object.keys(LABELS)) {
    const text = describe({ name, reasons: ["r"], asOf: 0, hint: false, limitedMs: 1, health: null, waiting: 2 });
    assert.ok(text.length > 3, name);
  }
});

test("a day is the sum of its parts, and two days can be compared", () => {
  const counts = countsOfDay({ parts: [{ counts: { x: 1, y: 5 } }, { counts: { x: 2 } }] });
  assert.deepEqual([...counts], [["x", 3], ["y", 5]]);
  assert.deepEqual(compareDays(counts, new Map([["z", 9], ["x", 1]])), [
    { name: "y", count: 5, otherCount: 0 }, { name: "x", count: 3, otherCount: 1 }, { name: "z", count: 0, otherCount: 9 }]);
});

test("a sparkline has a bar for each minute with hits", () => {
  const series = new Series();
  series.load(minutePoints(...Array.from({ length: 60 }, (_, i) => i % 2)));
  assert.equal(sparklinePath(series).split("M").length - 1, 30);
});

test("today is compared with earlier days up to the same hour", () => {
  const hours = [];
  for (let i = 0; i < 8 * 24; i++) hours.push({ start: new Date(Date.UTC(2026, 10, 22, i)).toISOString().replace("Z", "+00:00"), count: 1 });
  const until14 = hours.slice(0, 7 * 24 + 15);
  until14.at(-1).count = 50; // the running hour
  const compared = compareWithEarlierDays(until14, "2026-11-22");
  assert.deepEqual(compared, { until: "2026-11-29T14:00:00.000+00:00", today: 14, yesterday: 14, weekAgo: 14 });
  assert.equal(compareWithEarlierDays(until14, "2026-11-23").weekAgo, null);
  assert.equal(compareWithEarlierDays(until14, "").yesterday, null);
  assert.equal(compareWithEarlierDays(hours.slice(0, 7 * 24 + 1), "2026-11-22"), null);
});

test("a goal is reached once for each crossing, by live hits only", () => {
  const counters = new Counters();
  /** @type {string[]} */ const reached = [];
  const goals = new Goals(counters, (event) => reached.push(event));
  const row = (/** @type {string} */ eventName, /** @type {object} */ goal, count = 5, total = 105, day = "2026-11-23") => ({ eventName, goal, count, total, day });
  const rows = [row("daily", { count: 7 }), row("all", { total: 107 }), row("past", { count: 3 })];
  goals.load(rows);
  Object.assign(counters, { day: "2026-11-23" }).replace(["daily", "all", "past"], [5, 5, 5]);
  goals.updateAll();
  assert.deepEqual(reached, [], "nothing is reached by loading");
  for (const count of [6, 7, 8]) for (const event of ["daily", "all", "past"]) goals.update(event, count);
  goals.load(rows.map((one) => ({ ...one, count: 8, total: 108 })));
  assert.deepEqual(reached, ["daily", "all"]);
  assert.deepEqual(goalParts(/** @type {Goal} */ (goals.of("all"))), ["", "105 of 107", " in total"]);
  assert.deepEqual(goalParts({ .../** @type {Goal} */ (goals.of("daily")), value: 7 }), ["Goal reached: ", "7", " today"]);
  goals.update("daily", 6);
  goals.update("daily", 7);
  assert.deepEqual(reached, ["daily", "all", "daily"], "a correction took the count below the goal");
  goals.load([row("daily", { count: 6 }, 7)]);
  assert.equal(reached.length, 3, "a goal that is set below the count is not reached by a hit");
});

test("midnight does not reach a goal for the total", () => {
  const counters = new Counters();
  const goals = new Goals(counters, () => assert.fail("no hit has reached it"));
  Object.assign(counters, { day: "2026-11-23" }).replace(["a"], [8]);
  goals.load([{ eventName: "a", goal: { total: 107 }, count: 8, total: 108, day: "2026-11-23" }]);
  Object.assign(counters, { day: "2026-11-24" }).replace(["a"], [0]);
  goals.updateAll();
  assert.equal(goals.of("a")?.value, 108);
  goals.load([{ eventName: "a", goal: { total: 107 }, count: 0, total: 108, day: "2026-11-24" }]);
  assert.equal(goals.of("a")?.value, 108);
});

test("a note belongs to the bar of its time, and a day to the calendar of the server", () => {
  const notesAt = (...times) => times.map((at) => ({ id: at, at, text: "v2", event: null }));
  const found = (points, step, notes) => notesOfBars(points, step, notes).map((bar) => bar.map(({ at }) => at.slice(5, 16)));
  const hours = ["2026-11-23T10:00+05:30", "2026-11-23T11:00+05:30"].map((iso) => ({ start: Date.parse(iso), iso, count: 0, known: true }));
  const notes = notesAt("2026-11-23T09:59+05:30", "2026-11-23T10:00+05:30", "2026-11-23T11:59+05:30", "2026-11-23T12:00+05:30");
  assert.deepEqual(found(hours, "hour", notes), [["11-23T10:00"], ["11-23T11:59"]]);
  const days = ["2026-11-22", "2026-11-23"].map((iso) => ({ start: Date.parse(iso), iso, count: 0, known: true }));
  assert.deepEqual(found(days, "day", notesAt("2026-11-22T00:30+05:30", "2026-11-23T00:30+05:30", "2026-11-24T00:30+05:30")),
    [["11-22T00:30"], ["11-23T00:30"]]);
});

test("a range of an address is some days, an hour, or a time until now", () => {
  const steps = ["week", "2026-11-19", "2026-11-01..2026-11-15", "2026-01-01..2026-11-30", "2026-11-29T14:00:00+01:00"].map((value) => parseRange(value).step);
  assert.deepEqual(steps, ["day", "hour", "day", "month", "minute"]);
  for (const value of ["", "x", "toString", "2026-11-20..2026-11-01", "0001-01-01..2026-01-01", "2026-13-40", "2026-11-29Tx"]) assert.equal(parseRange(value), parseRange("hour"));
  assert.deepEqual([endOfMonth("2026-02-01"), endOfMonth("2026-12-01")], ["2026-02-28", "2026-12-31"]);
});

test("the points of a range come after as many of the period before, or alone", () => {
  const hours = Array.from({ length: 50 }, (_, i) => ({ start: new Date(Date.UTC(2026, 10, 17, 22 + i)).toISOString(), count: i }));
  const day = pointsOf(hours, parseRange("2026-11-19"));
  assert.deepEqual([day.size, day.points.length, day.points[24].start.slice(0, 13)], [24, 48, "2026-11-19T00"]);
  assert.equal(pointsOf(hours.slice(0, 30), parseRange("2026-11-19")).points.length, 8);
  assert.equal(pointsOf(hours, parseRange("2026-11-18")).points.length, 24);
  const days = Array.from({ length: 366 }, (_, i) => ({ start: new Date(Date.UTC(2025, 10, 29 + i)).toISOString(), count: 1 }));
  const { points } = pointsOf(days, parseRange("year"));
  assert.deepEqual([points.length, points[0].start.slice(0, 10), points[0].count, points[11].count], [12, "2025-12-01", 31, 29]);
});
