// What a page needs that stays on a wall for months.

const IDLE_MS = 3000; // The pointer is hidden after this time.
const SHIFT_MS = 600_000; // A picture that never moves burns into some screens.

/** Keeps the screen on, hides the pointer while it is still, and moves an element by a few pixels at times. @param {HTMLElement} picture */
export function startWallDisplay(picture) {
  let idleTimer = 0;
  // Only while the page is visible, and in browsers that support it.
  const keepScreenOn = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => {});
  function showPointer() {
    document.body.classList.remove("idle");
    clearTimeout(idleTimer);
    idleTimer = setTimeout(() => document.body.classList.add("idle"), IDLE_MS);
  }
  addEventListener("pointermove", showPointer);
  document.addEventListener("visibilitychange", keepScreenOn);
  setInterval(() => picture.style.setProperty("translate", `${Math.random() * 6 - 3}px ${Math.random() * 6 - 3}px`), SHIFT_MS);
  keepScreenOn();
  showPointer();
}
