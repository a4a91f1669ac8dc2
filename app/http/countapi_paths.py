"""The paths of CountAPI's and Abacus' routes, which the middleware and the error responses treat differently."""

COUNTING_PATHS = ("/hit/", "/update/")  # a GET counts hits
CHANGING_PATHS = (*COUNTING_PATHS, "/create/", "/set/")  # a GET has an effect
COUNTAPI_PATHS = (*CHANGING_PATHS, "/get/", "/info/", "/reset/", "/delete/", "/stream/", "/stats", "/healthcheck")
