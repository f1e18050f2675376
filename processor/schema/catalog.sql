-- What a database has of the schema: one row per object, as (kind, part_of, name, facts). It reads the catalog only.
-- $1: our relations in public, $2: our functions there; null takes all, which is right where nothing else lives.
-- Everything in schema processor is ours. The table of Realtime's messages is Supabase's; of its policies we look at ours.
--
-- The same schema gives the same rows on every supported PostgreSQL and whoever owns the objects: rights are those
-- of the API roles, not-null is a fact of its column, and the text of a view is compared without the table aliases
-- that only some versions print, and of owners only those who are not the one of schema processor. Comments and
-- storage parameters are not looked at.
-- To be run with an empty search_path, so that names are printed in full.

with api_role (oid, name) as (
  select 0::oid, 'public'
  union all
  select r.oid, r.rolname::text from pg_catalog.pg_roles r
  where r.rolname in ('anon', 'authenticated', 'service_role', 'job_processor')
),
word (word, grantable) as (
  values ('', false), ('grant option for ', true)
),
relation as (
  select c.*, format('%I.%I', n.nspname, c.relname) as name, n.nspname
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'S', 'c')
    and (n.nspname = 'processor' or (n.nspname = 'public' and ($1::text[] is null or c.relname = any ($1::text[]))))
),
tables as (
  select * from relation r where r.relkind in ('r', 'p')
),
messages as ( -- by the catalog: who may not use the schema may not name its tables
  select c.*, 'realtime.messages' as name
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'realtime' and c.relname = 'messages'
),
routine as (
  select p.*, format('%I.%I(%s)', n.nspname, p.proname, oidvectortypes(p.proargtypes)) as name
  from pg_catalog.pg_proc p
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'processor' or (n.nspname = 'public' and ($2::text[] is null or p.proname = any ($2::text[])))
),
object (kind, part_of, name, facts) as (
  select 'schema', null, n.nspname::text, '{}'::jsonb from pg_catalog.pg_namespace n where n.nspname = 'processor'

  union all
  select 'table', null, t.name, jsonb_build_object('row level security', t.relrowsecurity,
    'forced on the owner', t.relforcerowsecurity, 'replica identity', t.relreplident, 'persistence', t.relpersistence)
  from tables t

  union all
  select 'column', r.name, format('%I', a.attname), jsonb_strip_nulls(jsonb_build_object(
    'type', format_type(a.atttypid, a.atttypmod), 'not null', a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid),
    'identity', nullif(a.attidentity, ''), 'generated', nullif(a.attgenerated, '')))
  from relation r
  join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where r.relkind in ('r', 'p')

  union all
  select 'constraint', t.name, format('%I', c.conname),
    jsonb_build_object('definition', pg_get_constraintdef(c.oid), 'checked', c.convalidated)
  from tables t join pg_catalog.pg_constraint c on c.conrelid = t.oid
  where c.contype in ('c', 'f', 'p', 'u', 'x')

  union all
  select 'sequence', null, s.name, '{}' from relation s where s.relkind = 'S'

  union all
  select 'index', r.name, format('%I.%I', r.nspname, i.relname),
    jsonb_build_object('definition', pg_get_indexdef(x.indexrelid), 'valid', x.indisvalid and x.indisready)
  from relation r
  join pg_catalog.pg_index x on x.indrelid = r.oid
  join pg_catalog.pg_class i on i.oid = x.indexrelid
  where not exists (select from pg_catalog.pg_constraint c where c.conindid = x.indexrelid and c.contype in ('p', 'u', 'x'))

  union all
  select case r.relkind when 'c' then 'type' else 'view' end, null, r.name, jsonb_strip_nulls(jsonb_build_object(
    'columns', v.columns, 'options', replace(array_to_string(r.reloptions, ', '), '=true', '=on'), 'body', md5(regexp_replace(
      pg_get_viewdef(r.oid), '\s|\m(?!(public|processor|auth)\.)[a-z_][a-z0-9_]*\.(?=[a-z_"])', '', 'g'))))
  from relation r
  cross join lateral (
    select string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum) as columns
    from pg_catalog.pg_attribute a where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
  ) v
  where r.relkind in ('v', 'm', 'c')

  union all
  select 'function', null, f.name, jsonb_build_object(
    'arguments', pg_get_function_arguments(f.oid), 'returns', pg_get_function_result(f.oid),
    'language', l.lanname, 'security definer', f.prosecdef, 'settings', array_to_string(f.proconfig, ', '),
    'volatility', f.provolatile, 'strict', f.proisstrict, 'parallel', f.proparallel,
    'body', md5(replace(f.prosrc, E'\r', '')))
  from routine f join pg_catalog.pg_language l on l.oid = f.prolang

  union all
  select 'trigger', r.name, format('%I', g.tgname),
    jsonb_build_object('definition', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled)
  from relation r join pg_catalog.pg_trigger g on g.tgrelid = r.oid
  where not g.tgisinternal

  union all
  select 'policy', t.name, format('%I', p.polname), jsonb_strip_nulls(jsonb_build_object(
    'command', p.polcmd, 'permissive', p.polpermissive, 'using', pg_get_expr(p.polqual, p.polrelid),
    'check', pg_get_expr(p.polwithcheck, p.polrelid),
    'roles', (select string_agg(coalesce(r.rolname, 'public'), ', ' order by r.rolname)
      from unnest(p.polroles) as o (oid) left join pg_catalog.pg_roles r on r.oid = o.oid)))
  from (
    select t.oid, t.name, '%' as ours from tables t
    union all
    select m.oid, m.name, 'processor\_topics\_%' from messages m
  ) t
  join pg_catalog.pg_policy p on p.polrelid = t.oid and p.polname like t.ours

  union all
  select 'realtime', null, 'realtime.messages', jsonb_build_object('row level security', m.relrowsecurity)
  from messages m

  union all
  select 'publication', t.name, format('%I', p.pubname), jsonb_strip_nulls(jsonb_build_object(
    'columns', (select string_agg(a.attname, ', ' order by a.attnum) from pg_catalog.pg_attribute a
      where a.attrelid = t.oid and a.attnum = any (m.prattrs)),
    'filter', pg_get_expr(m.prqual, m.prrelid), 'insert', p.pubinsert, 'update', p.pubupdate,
    'implied', nullif(m.oid is null, false)))
  from pg_catalog.pg_publication p
  join tables t on t.nspname = 'public'
  left join pg_catalog.pg_publication_rel m on m.prpubid = p.oid and m.prrelid = t.oid
  where p.pubname = 'supabase_realtime'
    and (m.oid is not null or p.puballtables or exists (
      select from pg_catalog.pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = t.relnamespace))

  union all
  select 'role', null, r.rolname::text, jsonb_build_object('login', r.rolcanlogin, 'superuser', r.rolsuper,
    'bypass rls', r.rolbypassrls, 'create roles', r.rolcreaterole, 'create databases', r.rolcreatedb, 'inherit', r.rolinherit)
  from pg_catalog.pg_roles r where r.rolname = 'job_processor'

  union all
  select 'membership', 'job_processor', format('%s to %s', m.roleid::regrole, m.member::regrole), '{}'
  from pg_catalog.pg_auth_members m
  where m.member = to_regrole('job_processor')
    or (m.roleid = to_regrole('job_processor') and m.member = to_regrole('authenticator'))

  union all
  select 'right', o.name, format('%s%s on %s %s to %s', w.word, lower(a.privilege_type), o.kind, o.name, r.name), '{}'
  from (
    select 'schema' as kind, n.nspname::text as name, coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl
    from pg_catalog.pg_namespace n where n.nspname = 'processor'
    union all
    select 'table', t.name, coalesce(t.relacl, acldefault('r', t.relowner)) from relation t where t.relkind not in ('S', 'c')
    union all
    select 'sequence', t.name, coalesce(t.relacl, acldefault('s', t.relowner)) from relation t where t.relkind = 'S'
    union all
    select 'function', f.name, coalesce(f.proacl, acldefault('f', f.proowner)) from routine f
  ) o
  cross join lateral aclexplode(o.acl) a
  join api_role r on r.oid = a.grantee
  join word w on not w.grantable or a.is_grantable

  union all
  select 'right', t.name, format('%s%s (%I) on table %s to %s', w.word, lower(a.privilege_type), c.attname, t.name, r.name), '{}'
  from relation t
  join pg_catalog.pg_attribute c on c.attrelid = t.oid and not c.attisdropped
  cross join lateral aclexplode(c.attacl) a
  join api_role r on r.oid = a.grantee
  join word w on not w.grantable or a.is_grantable

  union all
  select 'owner', o.name, format('%s %s owner to %s', o.kind, o.name, n.nspowner::regrole),
    jsonb_build_object('owner', o.owner::regrole::text)
  from (
    select case t.relkind when 'v' then 'view' when 'c' then 'type' else 'table' end as kind, t.name, t.relowner as owner
    from relation t where t.relkind <> 'S'
    union all
    select 'function', f.name, f.proowner from routine f
  ) o
  join pg_catalog.pg_namespace n on n.nspname = 'processor' and n.nspowner <> o.owner

  union all
  select 'right', null, format('usage on schema public to %s', r.name), '{}'
  from api_role r
  where r.oid <> 0 and has_schema_privilege(r.oid, 'public', 'usage')
)
select kind, coalesce(part_of, '') as part_of, name, facts::text as facts
from object
order by kind collate "C", coalesce(part_of, '') collate "C", name collate "C"
