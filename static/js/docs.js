// Starts Swagger UI. The content security policy does not allow inline scripts.

/** Properties of Swagger UI's elements that mislead assistive technology, with the right values. */
const REPAIRS = {
  "table[role]": { role: null }, // a region without a name
  "div.copy-to-clipboard": { ariaLabel: null }, // an element that cannot have a name
  ".btn, .auth-container input": { ariaLabel: null }, // the name differs from the text or the label
  ".auth-container h6": { ariaLevel: "5" }, // below an h4
};

/** Replaces what assistive technology cannot read in Swagger UI. */
const accessible = ({ React: { createElement } }) => {
  const hidden = (text) => createElement("span", { key: "text", className: "visually-hidden" }, text);
  const labelled = (Original, label) => (props) => createElement("label", {}, hidden(label(props)), createElement(Original, props));
  return {
    components: {
      // The layout of Swagger UI has a second <main>, and a list of servers without a label.
      Routes: ({ getComponent, specSelectors }) => {
        const part = (name) => createElement(getComponent(name, true), { key: name });
        const start = createElement("div", { key: "start", className: "api-start" },
          createElement("p", { className: "note" }, `Version ${specSelectors.info().get("version")}`), part("AuthorizeBtnContainer"));
        const loaded = specSelectors.loadingStatus() === "success" && [start, part("operations"), part("Models")];
        return createElement("div", { className: "swagger-ui" }, part("errors"), loaded);
      },
      // Swagger UI puts a link into the button that opens an operation.
      DeepLink: ({ text }) => createElement("span", {}, text),
    },
    wrapComponents: {
      CloseIcon: (Original) => (props) => [createElement(Original, { ...props, key: "icon" }), hidden("Close")],
      JsonSchemaForm: (Original) => labelled(Original, ({ description }) => description),
      RequestBodyEditor: (Original) => labelled(Original, () => "Request body"),
    },
  };
};

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  layout: "Routes",
  plugins: [accessible],
  deepLinking: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  syntaxHighlight: false,
});
const root = document.getElementById("swagger-ui");
new MutationObserver(() => {
  for (const [selector, properties] of Object.entries(REPAIRS)) for (const el of root.querySelectorAll(selector)) Object.assign(el, properties);
  for (const el of root.querySelectorAll("pre")) if (el.scrollHeight > el.clientHeight) el.tabIndex = 0; // Keys can scroll it.
}).observe(root, { childList: true, subtree: true });
