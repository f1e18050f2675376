"""The schema as code: the files of ``sql/``, put into a database, looked at again, exported."""

from processor.schema.connect import SchemaError
from processor.schema.drift import Problem
from processor.schema.files import migrations, script, sql_files
from processor.schema.inspection import SchemaStatus, status
from processor.schema.install import apply
from processor.schema.supabase_cli import export

__all__ = [
    "Problem",
    "SchemaError",
    "SchemaStatus",
    "apply",
    "export",
    "migrations",
    "script",
    "sql_files",
    "status",
]
