// Writes CSV (RFC 4180) that is safe to open in a spreadsheet.

function cell(/** @type {string|number} */ value) {
  if (typeof value === "number") return value;
  // The apostrophe keeps spreadsheets from evaluating a formula. Quotes also protect semicolons, which some take for separators.
  const text = /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

export const csv = (/** @type {(string|number)[][]} */ rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
