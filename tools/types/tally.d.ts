// The shapes that the dashboard's modules share: what the server says, and what the modules are to each other.

type Point = { start: string; count: number };
type Audience = { users: number; sessions: number; activeSessions: number; exact: boolean; error: number | null };
type Ranked = { rank: number; eventName?: string; user?: string; count: number };
type Value = { count: number; total: number };
type Correction = { at: string; action: string; eventName: string | null; before: Value | null; after: Value | null };
type ClosedDay = { day: string; parts: { until: string; counts: Record<string, number> }[]; corrections?: Correction[] };
type DayRow = { day: string; hits: number; events: number; parts: number };
type Health = {
  status: string;
  reasons: string[];
  store: string;
  ack: string;
  survives: string;
  staleSeconds: number | null;
  spoolBytes: number;
  lostBatches: number;
  nodes: number;
  resetsAt: string;
  version: string;
};

// Of the namespace /live
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

type Row = { name: string; count: number };
type Step = "minute" | "hour" | "day";
type Bucket = { start: number; count: number; iso: string };
type Route = { view: string; name: string; query: URLSearchParams };

/** How the connection stands; `hint`: it looks as if a proxy were in the way. */
type Connection = { name: ConnectionName; reasons: string[]; asOf: number; hint: boolean };
type ConnectionName = "loading" | "live" | "reconnecting" | "offline" | "degraded" | "stale" | "locked";
type StatusName = ConnectionName | "paused" | "limited" | "spooling" | "down";
type Status = Omit<Connection, "name"> & {
  name: StatusName;
  waiting: number;
  limitedMs: number;
  updated: boolean;
  synced: boolean;
  health: Health | null;
};

/** What a page does with what the session brings. */
type Sight = {
  paint: (dirty: Set<number>, remade: boolean, lively: boolean) => void;
  tick: (synced: boolean) => void;
  onHits?: (hits: number) => void;
  onSnapshot?: () => void;
  onStatus: (status: Status) => void;
};
type Listener = {
  key: () => string;
  onSnapshot: (whole: Snapshot) => void;
  onChanges: (message: Changes) => void;
  onStatus: (connection: Connection) => void;
};
/** What is asked before something that cannot be taken back; `word` has to be typed. */
type Question = {
  title: string;
  text: string;
  word: string;
  action: string;
  fields?: { label: string; name: string; value: number }[];
  run: (values: Record<string, number>) => Promise<unknown>;
  done: () => void;
};
type Card = import("../../static/js/components/card-grid.js").Card;
type Session = ReturnType<typeof import("../../static/js/data/session.js").openSession>;
/** A page of the dashboard: `show` what the address asks for, `paint` what was counted, and each second a `tick`. */
type Page = {
  title: () => string;
  show: (route: Route) => void;
  renew: () => void;
  hide?: () => void;
  paint?: (dirty: Set<number>, remade: boolean, lively: boolean) => void;
  tick?: (synced: boolean) => void;
};
