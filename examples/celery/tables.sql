CREATE TABLE IF NOT EXISTS example_report (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    below integer NOT NULL,
    primes integer NOT NULL
);
