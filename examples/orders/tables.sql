CREATE TABLE IF NOT EXISTS example_item (
    name text PRIMARY KEY,
    stock integer NOT NULL CONSTRAINT enough_in_stock CHECK (stock >= 0)
);

CREATE TABLE IF NOT EXISTS example_order (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    item text NOT NULL REFERENCES example_item,
    quantity integer NOT NULL CHECK (quantity > 0)
);

INSERT INTO example_item VALUES ('pencil', 100) ON CONFLICT (name) DO UPDATE SET stock = EXCLUDED.stock;
