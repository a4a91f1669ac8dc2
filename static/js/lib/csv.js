// RFC 4180, with all text quoted, for some spreadsheets end a cell at a semicolon; a cell that a spreadsheet would take for a formula is told to be text. Pure.

/** @param {string|number} value */
function cell(value) {
  if (typeof value === "number") return value;
  const text = /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

/** @param {(string|number)[][]} rows */
export const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
