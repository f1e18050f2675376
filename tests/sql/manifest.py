"""Write the manifest of the schema; ``scripts/manifest`` runs this."""

import asyncio
import tempfile
from pathlib import Path

from processor.local.postgres import Postgres
from processor.schema import catalog
from tests.sql.harness import BOOTSTRAP, SQL_FILES, connect


async def write() -> None:
    with tempfile.TemporaryDirectory(prefix="manifest-") as directory:
        postgres = Postgres(Path(directory) / "data", durable=False)
        await postgres.start()
        try:
            connection = await connect(postgres.dsn())
            for file in (BOOTSTRAP, *SQL_FILES):
                await connection.execute(file.read_text(encoding="utf-8"))
            objects = await catalog.found(connection, everything=True)
            await connection.close()
        finally:
            await postgres.stop()
    catalog.MANIFEST.write_text(catalog.manifest(objects), encoding="utf-8")
    print(f"{len(objects)} objects in {catalog.MANIFEST}")  # noqa: T201 - a command's answer


if __name__ == "__main__":
    asyncio.run(write())
