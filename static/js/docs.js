// Starts Swagger UI; a file of its own because inline scripts are not allowed.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, defaultModelsExpandDepth: 0 });
