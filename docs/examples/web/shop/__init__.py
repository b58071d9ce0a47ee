"""An order service: FastAPI, an async engine, and workflows of sa_wfstate."""
