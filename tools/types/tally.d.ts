// Types that the dashboard's modules share: the server's JSON, and the interfaces between modules.

/** Today's counts by event, requested by first-count.js; null if the request failed. */
interface Window { firstCounts?: Promise<Record<string, number> | null> }

type Point = { start: string; count: number };
type Audience = { users: number; sessions: number; activeSessions: number; exact: boolean; error: number | null };
type Ranked = { rank: number; eventName?: string; user?: string; count: number };
/** `weekAgo` is null if it is unknown, and missing if the window is a week. */
type Mover = { eventName: string; count: number; previous: number; weekAgo?: number | null };
type Movers = (typeof import("../../static/js/data/movers.js").MOVERS)[string];
type Value = { count: number; total: number };
type Share = { id: string; title: string; events: string[]; createdAt: string };
type SharedCounts = { title: string; day: string; events: (Value & { eventName: string })[] };
type Correction = { at: string; action: string; eventName: string | null; before: Value | null; after: Value | null };
type ClosedDay = { day: string; parts: { until: string; counts: Record<string, number> }[]; corrections?: Correction[] };
type DayRow = { day: string; hits: number; events: number; parts: number };
type Alert = {
  id: string;
  event: string;
  when: { count?: number; total?: number; every?: number; above?: number; below?: number; window?: string };
  url: string;
  format: string;
  undelivered: number;
  pending: number;
  error: string;
};
type GoalRow = { eventName: string; goal: { count?: number; total?: number }; count: number; total: number; day: string };
/** `earlier` is the total of the days before `day`. `isReached` is null until it is known. `times` counts how often live hits reached it. */
type Goal = { target: number; isDaily: boolean; day: string; value: number; earlier: number; isReached: boolean | null; times: number };
/** What an API key may do. */
type KeyPermissions = { read: boolean; write: boolean; admin: boolean };
/** A note on the timeline. `event` is null if it belongs to all events. */
type TimelineNote = { id: string; at: string; text: string; event: string | null };
type Health = {
  status: string;
  reasons: string[];
  store: string;
  ack: string;
  durability: string;
  staleSeconds: number | null;
  spoolBytes: number;
  lostBatches: number;
  nodes: number;
  resetsAt: string;
  open: string[];
  version: string;
};

// Messages of the Socket.IO namespace /live. A snapshot arrives in chunks, each with an `offset` into `size` names.
type Changes = { seq: number; since?: number; changes: [number, number][]; names: string[] };
type Snapshot = {
  epoch: string;
  seq: number;
  day: string;
  generation: number;
  resetsAt: string | null;
  offset: number;
  size: number;
  names: string[];
  counts: number[];
};

/** `buffered` holds the changes that arrive before the snapshot is complete. */
type Held = { snapshot: Snapshot | null; names: string[]; changes: Map<number, number> };
type IncomingSnapshot = { awaiting: boolean; partial: Snapshot | null; buffered: Changes[] };

type Row = { name: string; count: number };
type Step = "minute" | "hour" | "day" | "month";
/** `points` is what to request; `until` their end. `size` is the buckets of the range, those of the period before are of the same number. */
type ChartRange = {
  label?: string;
  words: string;
  step: Step;
  size: number;
  points: number;
  until?: string;
  from?: string;
  to?: string;
  hour?: number;
};
/** `known` is false for a time before the first count of this server, of which a count of 0 would be wrong. */
type Bucket = { start: number; count: number; iso: string; known: boolean };
/** `line` is drawn over the bars: the previous period, or another event, whose name is `event`. */
type ChartData = { points: Bucket[]; line: Bucket[]; event: string; step: Step; running: boolean; pickable: boolean; selected?: string };
type Route = { view: string; name: string; query: URLSearchParams };

type ConnectionName = "loading" | "live" | "reconnecting" | "offline" | "degraded" | "stale" | "locked";
/** The state of the socket. `asOf` is the time of the last message in ms; `hint` means that a proxy may block live connections. */
type Connection = { name: ConnectionName; reasons: string[]; asOf: number; hint: boolean };
type StatusName = ConnectionName | "paused" | "limited" | "spooling" | "down";
/** The status that the dashboard shows. `waiting` counts the changes during a pause; `updated` means that the server has a new version. */
type Status = Omit<Connection, "name"> & {
  name: StatusName;
  waiting: number;
  limitedMs: number;
  updated: boolean;
  synced: boolean;
  health: Health | null;
};

/** `paint` gets the indices of the changed events, whether all have changed, and whether to animate. `tick` runs every second. */
type SessionCallbacks = {
  paint: (dirty: Set<number>, full: boolean, animate: boolean) => void;
  tick: (synced: boolean) => void;
  onHits?: (hits: number) => void;
  onSnapshot?: () => void;
  onGoal?: (event: string, goal: Goal) => void;
  onStatus: (status: Status) => void;
};
type SocketCallbacks = {
  apiKey: () => string;
  onSnapshot: (snapshot: Snapshot) => void;
  onChanges: (message: Changes) => void;
  onStatus: (connection: Connection) => void;
};
/** A question before an action that cannot be undone. The reader has to type `word`. */
type Confirmation = {
  title: string;
  text: string;
  word: string;
  action: string;
  /** Numbers to edit. `read` returns the present one, or null if it is unknown; the request has it under the name `expected`. */
  fields?: { label: string; name: string; expected: string; read: () => number | null }[];
  run: (values: Record<string, number>) => Promise<unknown>;
  onDone: () => void;
};
/** What the command palette finds: `hint` is a key or a count; `isName` means that a client chose the label. */
type Command = { label: string; hint: string; run: () => void; isName?: boolean };
type Counters = import("../../static/js/data/counters.js").Counters;
type Card = import("../../static/js/components/card-grid.js").Card;
type Session = ReturnType<typeof import("../../static/js/data/session.js").openSession>;
/** A page of the dashboard. `show` applies the address, `reload` loads from the server again, `paint` and `tick` are as in SessionCallbacks. */
type Page = {
  title: () => string;
  show: (route: Route) => void;
  reload: () => void;
  hide?: () => void;
  paint?: (dirty: Set<number>, full: boolean, animate: boolean) => void;
  tick?: (synced: boolean) => void;
};
