-- The functions and triggers of channels_pg_sa, for the first schema of the search path. Run again, it replaces them.
DO $install$
DECLARE
    target constant text := pg_catalog.quote_ident(pg_catalog.current_schema()::text);
    search_path constant text := pg_catalog.current_setting('search_path'::text);
    routine text;
    stranger text;
BEGIN
    -- Who may create functions in the search path must not be able to slip one of theirs in, by a better fitting type.
    PERFORM pg_catalog.set_config('search_path'::text, 'pg_catalog, pg_temp'::text, true);
    FOREACH routine IN ARRAY ARRAY[

-- The NOTIFY channel of a node or queue; channels_pg_sa.topics.topic is its twin. STABLE, as convert_to() is: a
-- function that promises more than what it calls is not inlined, and before PostgreSQL 18 each statement parses it
-- anew.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_topic(secret text, kind text, prefix text, name text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT 'channels_pg_sa_' || left(encode(sha256(convert_to(
        secret || E'\x1f' || kind || E'\x1f' || prefix || E'\x1f' || name, 'UTF8')), 'hex'), 32)
$body$
$routine$,

-- Whether a message waits in a queue, whose readers compete, and not in a node's mailbox.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_queued(channel text, recipient text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT channel IS NOT NULL AND (channel = recipient OR right(recipient, 1) = '!')
$body$
$routine$,

-- What a notification says of a message. Who reads a queue has to claim its rows, and hears that there are some (Q). A
-- node's message travels in it (a parcel: P, of a group G) if it fits, and else only the id (a doorbell: p, g). 5,850
-- bytes of name and payload, as base64, fit into 7,999 with all that stands before them. What separates frames and
-- their parts is taken out of names, which have none: who may insert a row must not write frames into its name.
-- (replace() finds nothing in a tenth of the time that translate() takes.)
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_frame(
    id bigint, expires_at timestamptz, recipient text, channel text, group_name text, payload bytea) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT CASE WHEN @.channels_pg_sa_queued(channel, recipient)
        THEN 'Q' || id || ' ' || replace(replace(recipient, ' ', ''), ',', '')
        WHEN octet_length(payload) + octet_length(coalesce(channel, group_name)) < 5850
        THEN CASE WHEN group_name IS NULL THEN 'P' ELSE 'G' END || id || ' ' || date_part('epoch', expires_at) || ' '
            || replace(replace(coalesce(channel, group_name), ' ', ''), ',', '') || ' ' || encode(payload, 'base64')
        ELSE CASE WHEN group_name IS NULL THEN 'p' ELSE 'g' END || id || ' ' || date_part('epoch', expires_at) || ' '
            || replace(replace(coalesce(channel, group_name), ' ', ''), ',', '')
        END
$body$
$routine$,

-- Each node hears of the messages in its mailbox, and each queue of its new rows (Q), of a batch of the first and the
-- last. Of a batch as many frames as fit share a notification; a few rows are notified one by one, because a single
-- statement that need not sort takes less time. In the loop an assignment of a plain expression takes a fraction of
-- what a statement does, of which PERFORM is one; so there pg_notify() is called for the value that it does not have.
-- On another's table it would run, with our owner's rights, what the casts of that table's types do.
-- Times are written in full, whatever the session's setting: rows are told by them.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_message_added() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 AS $body$
DECLARE
    prefix text;
    recipient text;
    queued boolean;
    frame text;
    secret text;
    last_prefix text;
    last_recipient text;
    topic text;
    packed text;
    last_ring text := '';
    notified boolean;
BEGIN
    IF TG_RELID <> '@.channels_pg_sa_message'::regclass THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a trigger for ' || TG_RELID::regclass;
    END IF;
    PERFORM pg_notify(
        @.channels_pg_sa_topic(
            (SELECT i.secret FROM @.channels_pg_sa_installation i),
            CASE WHEN @.channels_pg_sa_queued(f.channel, f.recipient) THEN 'queue' ELSE 'node' END,
            f.prefix, f.recipient),
        @.channels_pg_sa_frame(f.id, f.expires_at, f.recipient, f.channel, f.group_name, f.payload))
    FROM fresh f WHERE NOT EXISTS (SELECT FROM fresh OFFSET 8);
    IF FOUND THEN
        RETURN NULL;
    END IF;
    FOR prefix, recipient, queued, frame, secret IN
        SELECT f.prefix, f.recipient, @.channels_pg_sa_queued(f.channel, f.recipient),
            @.channels_pg_sa_frame(f.id, f.expires_at, f.recipient, f.channel, f.group_name, f.payload),
            (SELECT i.secret FROM @.channels_pg_sa_installation i)
        FROM fresh f ORDER BY f.prefix, f.recipient, f.id
    LOOP
        IF recipient IS DISTINCT FROM last_recipient OR prefix IS DISTINCT FROM last_prefix THEN
            IF packed IS NOT NULL THEN
                notified := pg_notify(topic, packed || last_ring) IS NOT NULL;
            END IF;
            last_ring := '';
            last_prefix := prefix;
            last_recipient := recipient;
            topic := @.channels_pg_sa_topic(
                secret, CASE WHEN queued THEN 'queue' ELSE 'node' END, prefix, recipient);
            packed := frame;
        ELSIF queued THEN
            last_ring := ',' || frame;
        ELSIF octet_length(packed) + octet_length(frame) < 7999 THEN
            packed := packed || ',' || frame;
        ELSE
            notified := pg_notify(topic, packed) IS NOT NULL;
            packed := frame;
        END IF;
    END LOOP;
    IF packed IS NOT NULL THEN
        notified := pg_notify(topic, packed || last_ring) IS NOT NULL;
    END IF;
    RETURN NULL;
END
$body$
$routine$,

-- Each node hears which of its own channels join (J) and leave (L) groups. The time makes each frame unique, because
-- identical notifications of one transaction collapse. A node that was swept hears nothing: it keeps its memberships in
-- memory, and restores them if it ever comes back.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_membership_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    frames refcursor;
    stamp text := (date_part('epoch', clock_timestamp()) * 1000000)::bigint;
    prefix text;
    node text;
    frame text;
    secret text;
    last_prefix text;
    last_node text;
    topic text;
    packed text;
    notified boolean;
BEGIN
    IF TG_RELID <> '@.channels_pg_sa_membership'::regclass THEN
        RAISE insufficient_privilege USING MESSAGE = 'not a trigger for ' || TG_RELID::regclass;
    END IF;
    IF TG_OP = 'DELETE' THEN
        OPEN frames FOR
            SELECT g.prefix, g.node,
                'L' || stamp || ' ' || replace(replace(g.group_name, ' ', ''), ',', '')
                    || ' ' || replace(replace(g.channel, ' ', ''), ',', ''),
                (SELECT i.secret FROM @.channels_pg_sa_installation i)
            FROM gone g
            WHERE EXISTS (SELECT FROM @.channels_pg_sa_node n WHERE n.id = g.node AND n.pid IS NOT NULL)
            ORDER BY g.prefix, g.node;
    ELSE
        OPEN frames FOR
            SELECT f.prefix, f.node,
                'J' || stamp || ' ' || replace(replace(f.group_name, ' ', ''), ',', '')
                    || ' ' || replace(replace(f.channel, ' ', ''), ',', '') || ' ' || date_part('epoch', f.expires_at),
                (SELECT i.secret FROM @.channels_pg_sa_installation i)
            FROM fresh f
            WHERE f.node <> '' ORDER BY f.prefix, f.node;
    END IF;
    LOOP
        FETCH frames INTO prefix, node, frame, secret;
        EXIT WHEN NOT FOUND;
        IF node IS DISTINCT FROM last_node OR prefix IS DISTINCT FROM last_prefix
            OR octet_length(packed) + octet_length(frame) >= 7999
        THEN
            IF packed IS NOT NULL THEN
                notified := pg_notify(topic, packed) IS NOT NULL;
            END IF;
            last_prefix := prefix;
            last_node := node;
            topic := @.channels_pg_sa_topic(secret, 'node', prefix, node);
            packed := frame;
        ELSE
            packed := packed || ',' || frame;
        END IF;
    END LOOP;
    CLOSE frames;
    IF packed IS NOT NULL THEN
        notified := pg_notify(topic, packed) IS NOT NULL;
    END IF;
    RETURN NULL;
END
$body$
$routine$,

-- LISTENs to topics, or stops. Here, because a topic is a secret, and others may read the text of a LISTEN:
-- pg_stat_statements keeps it as it is, of what a function does only if it is told to track all.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_listen(topics text[], stop boolean) RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    topic text;
BEGIN
    FOREACH topic IN ARRAY topics LOOP
        EXECUTE CASE WHEN stop THEN 'UNLISTEN ' ELSE 'LISTEN ' END || quote_ident(topic);
    END LOOP;
END
$body$
$routine$,

-- Checks what SQL sends, as the layer checks its own, and returns the payload: JSON. A string that begins with U+FFFF
-- gets one more, because to channels_pg_sa.codec that mark says that bytes follow; keys (before a colon) stay.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_payload(
    kind text, name text, message jsonb, prefix text, expiry interval) RETURNS bytea
LANGUAGE plpgsql STABLE AS $body$
DECLARE
    pattern constant text := '^[a-zA-Z0-9_.-]+'
        || CASE kind WHEN 'channel' THEN '(![a-zA-Z0-9_.-]*)?$' ELSE '$' END;
    mark constant bytea := decode('efbfbf', 'hex');
    missing constant text := CASE WHEN name IS NULL THEN kind WHEN message IS NULL THEN 'message'
        WHEN prefix IS NULL THEN 'prefix' WHEN expiry IS NULL THEN 'expiry' END;
    content text;
    unreadable text;
    payload bytea;
BEGIN
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = missing || ' is NULL',
            HINT = 'No argument may be NULL; prefix and expiry may be left out.';
    ELSIF length(name) >= 100 OR name !~ pattern THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = kind || ' is not a valid name: ' || quote_literal(left(name, 100)),
            HINT = 'A name has fewer than 100 characters: ASCII letters, digits, hyphens, underscores and periods'
                || CASE kind WHEN 'channel' THEN ', with at most one "!".' ELSE '.' END;
    ELSIF prefix = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'prefix is empty',
            HINT = 'Give the prefix that the layer is configured with, or leave it out.';
    ELSIF length(prefix) > 100 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'prefix has ' || length(prefix) || ' characters, and 100 are the limit',
            HINT = 'Give the prefix that the layer is configured with, or leave it out.';
    ELSIF expiry <= interval '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'expiry is not positive: ' || expiry,
            HINT = 'It is how long the message may wait to be read.';
    ELSIF jsonb_typeof(message) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'message is not a JSON object but: ' || jsonb_typeof(message),
            HINT = 'A consumer needs an object with a "type": {"type": "chat.message", ...}.';
    END IF;
    content := message;
    -- What cannot be at fault is not walked through: 101 arrays or objects have as many pairs of brackets.
    IF length(content) > 200 AND jsonb_path_exists(
        message, 'strict $.**{101} ? (@.type() == "object" || @.type() == "array")')
    THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'message is nested more than 100 deep',
            HINT = 'Store what is so deep, and send where it is.';
    END IF;
    IF content ~ '[0-9]{19}' THEN
        SELECT found.number INTO unreadable
        FROM jsonb_path_query(message,
            'strict $.** ? (@ > 9223372036854775807 || @ < -9223372036854775808)') found (number)
        WHERE strpos(found.number::text, '.') = 0 OR abs(found.number::numeric) >= 1.8e308;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'message has an integer of more than 64 bits or a number over 1.8e308: '
                    || left(unreadable, 40),
                HINT = 'Send it as a string.';
        END IF;
    END IF;
    payload := convert_to(content, 'UTF8');
    IF position(mark IN payload) > 0 AND octet_length(payload) <= 16777216 THEN
        payload := convert_to(regexp_replace(
            content, E'(?<!\\\\)"' || convert_from(mark, 'UTF8') || E'(?=([^"\\\\]|\\\\.)*"[^:])',
            '"' || convert_from(mark || mark, 'UTF8'), 'g'), 'UTF8');
    END IF;
    IF octet_length(payload) > 16777216 THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
            MESSAGE = 'message has ' || octet_length(payload) || ' bytes, and 16777216 are the limit',
            HINT = 'Store what is large, and send where it is.';
    END IF;
    RETURN payload;
END
$body$
$routine$,

-- Sends to a channel; channels_pg_sa.names.recipient_of tells whose mailbox that is.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_send(
    channel text, message jsonb, prefix text DEFAULT 'asgi', expiry interval DEFAULT '60 s') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    target constant text COLLATE "C" := channel;  -- whatever collation the argument has
    content constant bytea := @.channels_pg_sa_payload('channel', target, message, prefix COLLATE "C", expiry);
    recipient constant text COLLATE "C" := coalesce(
        substring(target FROM '[.]([0-9a-f]{12})!'),
        CASE strpos(target, '!') WHEN 0 THEN target ELSE split_part(target, '!', 1) || '!' END);
BEGIN
    PERFORM set_config('channels_pg_sa.notified', 'off', true);  -- whoever calls may have said that it need not
    INSERT INTO @.channels_pg_sa_message (prefix, recipient, channel, payload, expires_at)
    VALUES (prefix, recipient, target, content, clock_timestamp() + expiry);
END
$body$
$routine$,

-- Sends to a group: one row for each node that has members, found by a loose index scan, and one for each member that
-- no single node reads. channels_pg_sa.statements.messages.publish is its twin.
$routine$
CREATE OR REPLACE FUNCTION @.channels_pg_sa_group_send(
    group_name text, message jsonb, prefix text DEFAULT 'asgi', expiry interval DEFAULT '60 s') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    whose constant text COLLATE "C" := prefix;
    addressed constant text COLLATE "C" := group_name;
    content constant bytea := @.channels_pg_sa_payload('group_name', addressed, message, whose, expiry);
    until constant timestamptz := clock_timestamp() + expiry;
BEGIN
    PERFORM set_config('channels_pg_sa.notified', 'off', true);
    INSERT INTO @.channels_pg_sa_message (prefix, recipient, channel, group_name, payload, expires_at)
    WITH RECURSIVE nodes (node) AS (
        SELECT '' COLLATE "C"
        UNION ALL
        SELECT (
            SELECT m.node FROM @.channels_pg_sa_membership m
            WHERE m.prefix = whose AND m.group_name = addressed AND m.node > n.node
                AND m.expires_at > clock_timestamp()
            ORDER BY m.node LIMIT 1)
        FROM nodes n WHERE n.node IS NOT NULL)
    SELECT whose, n.node, NULL, addressed, content, until FROM nodes n WHERE n.node <> ''
    UNION ALL
    SELECT whose, CASE strpos(m.channel, '!') WHEN 0 THEN m.channel ELSE split_part(m.channel, '!', 1) || '!' END,
        m.channel, NULL, content, until
    FROM @.channels_pg_sa_membership m
    WHERE m.prefix = whose AND m.group_name = addressed AND m.node = '' AND m.expires_at > clock_timestamp();
END
$body$
$routine$,

-- What runs with the rights of the tables' owner nobody else may call. Not the triggers' functions either: who put one
-- on a table of their own would choose what it reads. A trigger fires without this right. To whom sending is granted,
-- who need no other right for it, is for the owner to say.
'REVOKE EXECUTE ON FUNCTION @.channels_pg_sa_message_added() FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @.channels_pg_sa_membership_changed() FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @.channels_pg_sa_send(text, jsonb, text, interval) FROM PUBLIC',
'REVOKE EXECUTE ON FUNCTION @.channels_pg_sa_group_send(text, jsonb, text, interval) FROM PUBLIC',

-- A statement that has notified by itself says so, until its transaction ends: channels_pg_sa.statements.one_message.
-- What somebody's trigger sends under it is another statement.
'DROP TRIGGER IF EXISTS added ON @.channels_pg_sa_message',
'CREATE TRIGGER added AFTER INSERT ON @.channels_pg_sa_message REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT
    WHEN (current_setting(''channels_pg_sa.notified'', true) IS DISTINCT FROM ''on'' OR pg_trigger_depth() > 0)
    EXECUTE FUNCTION @.channels_pg_sa_message_added()',
-- A trigger of somebody's that fires for what replication brings, with session_replication_role = replica, sends too.
'ALTER TABLE @.channels_pg_sa_message ENABLE ALWAYS TRIGGER added',
'DROP TRIGGER IF EXISTS joined ON @.channels_pg_sa_membership',
'CREATE TRIGGER joined AFTER INSERT ON @.channels_pg_sa_membership REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION @.channels_pg_sa_membership_changed()',
'DROP TRIGGER IF EXISTS renewed ON @.channels_pg_sa_membership',
'CREATE TRIGGER renewed AFTER UPDATE ON @.channels_pg_sa_membership REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION @.channels_pg_sa_membership_changed()',
'DROP TRIGGER IF EXISTS departed ON @.channels_pg_sa_membership',
'CREATE TRIGGER departed AFTER DELETE ON @.channels_pg_sa_membership REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION @.channels_pg_sa_membership_changed()',

-- Rows live for milliseconds: vacuum by count, early and at full speed. And store payloads as they are: compressing them
-- costs more than it saves.
'ALTER TABLE @.channels_pg_sa_message SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_cost_delay = 0)',
'ALTER TABLE @.channels_pg_sa_message ALTER COLUMN payload SET STORAGE EXTERNAL'

    ] LOOP
        EXECUTE replace(routine, '@.channels', target || '.channels');
    END LOOP;
    -- What was there before stays its owner's, who may see what others write into it, or change what they run.
    SELECT found.name INTO stranger
    FROM (
        SELECT c.oid::regclass::text, c.relnamespace, c.relowner FROM pg_class c
        WHERE c.relname IN ('channels_pg_sa_message', 'channels_pg_sa_membership', 'channels_pg_sa_node',
            'channels_pg_sa_installation', 'channels_pg_sa_version')
        UNION ALL
        SELECT p.oid::regprocedure::text, p.pronamespace, p.proowner FROM pg_proc p
        WHERE p.proname IN ('channels_pg_sa_topic', 'channels_pg_sa_queued', 'channels_pg_sa_frame',
            'channels_pg_sa_listen', 'channels_pg_sa_message_added', 'channels_pg_sa_membership_changed',
            'channels_pg_sa_payload', 'channels_pg_sa_send', 'channels_pg_sa_group_send')
    ) found (name, namespace, owner) JOIN pg_roles r ON r.oid = found.owner
    WHERE found.namespace = target::regnamespace AND r.rolname <> current_user AND NOT r.rolsuper;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = stranger || ' belongs to somebody else',
            HINT = 'Drop it, if it is a stranger''s; or do this as the role that owns it.';
    END IF;
    PERFORM set_config('search_path', search_path, true);
END
$install$;
