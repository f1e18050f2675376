-- The numbered files follow in the same transaction. A function whose answer has another column must be made anew.

do $migration$
begin
  if not exists (
    select from pg_catalog.pg_proc p
    where p.oid = to_regprocedure('processor.finish_batch(uuid, jsonb)') and not 'facts' = any (p.proargnames)
  ) then
    return; -- a new database, or one that has it
  end if;
  drop function processor.finish_batch(uuid, jsonb);
  drop function processor.finish_singly(uuid, jsonb);
end
$migration$;
