// Browser notifications, which the reader turns on in this browser. They are shown while a page is open.

import { getPref, setPref } from "./prefs.js";

const isSupported = () => "Notification" in globalThis && isSecureContext;

/** Whether the reader could turn them on. */
export const canNotify = () => isSupported() && Notification.permission !== "denied";

/** Returns whether notifications are shown, and why not, in words. It is "" before the reader has turned them on. */
export function notificationText() {
  if (!isSupported()) return "This browser can’t show notifications on this page. They need https or localhost.";
  if (!canNotify()) return "This browser blocks notifications of this page. Allow them in its settings for this site.";
  if (getPref("notify") !== "on") return "";
  return areNotificationsOn() ? "Shown in this browser while a page of the dashboard is open." : "Not allowed yet. Turn them on again, and allow them when the browser asks.";
}

export const areNotificationsOn = () => isSupported() && Notification.permission === "granted" && getPref("notify") === "on";

/** Turns notifications on or off. Call it in a click, because a browser may ask the reader. @param {boolean} on */
export async function setNotifications(on) {
  if (on && isSupported()) await Notification.requestPermission();
  setPref("notify", on ? "on" : "off");
}

/** Shows a notification, if they are on. @param {string} title @param {string} body @param {() => void} onClick */
export function notify(title, body, onClick) {
  if (!areNotificationsOn()) return;
  try {
    // Other tabs use the same tag, so that the reader sees one notification.
    new Notification(title, { body, tag: title }).onclick = () => { window.focus(); onClick(); };
  } catch { /* Browsers of phones show notifications of service workers only. */ }
}
