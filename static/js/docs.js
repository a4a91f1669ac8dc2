// Starts Swagger UI. The content security policy does not allow inline scripts.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, defaultModelsExpandDepth: 0 });
