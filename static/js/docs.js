// Starts Swagger UI. The content security policy does not allow inline scripts.

/** Replaces what assistive technology cannot read in Swagger UI. */
const accessible = ({ React: { cloneElement, createElement } }) => {
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
      CopyToClipboardBtn: (Original) => (props) => cloneElement(Original(props), { title: undefined, "aria-label": undefined }),
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
