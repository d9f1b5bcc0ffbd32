CREATE TABLE IF NOT EXISTS example_news (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    headline text NOT NULL
);

-- One message for each row that comes, changes or goes, whoever writes it.
CREATE OR REPLACE FUNCTION example_news_push() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM channels_pg_sa_group_send('news', jsonb_build_object(
        'type', 'news.changed',
        'what', lower(TG_OP),
        'row', CASE TG_OP WHEN 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END
    ));
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS push ON example_news;
CREATE TRIGGER push AFTER INSERT OR UPDATE OR DELETE ON example_news
    FOR EACH ROW EXECUTE FUNCTION example_news_push();
