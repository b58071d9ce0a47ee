"""What SQLAlchemy itself has mended since the lowest version that is supported."""

from __future__ import annotations

import re

import sqlalchemy

SQLALCHEMY = tuple(int(part) for part in re.findall(r"\d+", sqlalchemy.__version__)[:3])

KEEPS_POST_UPDATED_VERSIONS = SQLALCHEMY >= (2, 0, 43)
"""Before, it gave the objects of a multi-row post_update one another's values."""

TYPES_JSON_PATHS = SQLALCHEMY >= (2, 0, 46)
"""Before, it told PostgreSQL that a JSON path was a VARCHAR."""

ENDS_REFUSED_PREPARE = SQLALCHEMY >= (2, 0, 51)
"""Before, it tripped over its own rollback."""

ESCAPES_PERCENT = SQLALCHEMY >= (2, 0, 55)
"""Before, it took ``%(name)s`` in a literal or a name for a parameter, with asyncpg."""

POST_UPDATES_BEFORE_DELETE = SQLALCHEMY >= (2, 0, 58)
"""Before, it could delete a parent before post_update had freed its children."""

WRAPS_LISTENERS = SQLALCHEMY >= (2, 1)
"""Before, it called listeners of a statement outside of what it wraps the errors of."""
