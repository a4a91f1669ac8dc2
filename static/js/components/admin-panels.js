// The panels of administrative actions. Their buttons are disabled until there is an admin key.

import { getPermissions } from "../data/api.js";
import { apiKey } from "../data/prefs.js";

/** Enables or disables the administrative actions of a page, as the present API key permits. @param {HTMLElement} page */
export async function updateAdminPanels(page) {
  const notes = /** @type {NodeListOf<HTMLElement>} */ (page.querySelectorAll(".needs-admin"));
  if (!notes.length) return;
  const key = apiKey();
  const permissions = await getPermissions(key).catch(() => null);
  if (!permissions || key !== apiKey()) return;
  for (const note of notes) note.hidden = permissions.admin;
  for (const actions of /** @type {NodeListOf<HTMLFieldSetElement>} */ (page.querySelectorAll("fieldset.actions"))) actions.disabled = !permissions.admin;
}
