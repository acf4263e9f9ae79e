CREATE FUNCTION refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$;
CREATE TABLE assignment (
    id bigint NOT NULL,
    task_id bigint NOT NULL,
    user_id bigint NOT NULL,
    purpose character varying(20) DEFAULT 'judge'::character varying NOT NULL,
    shown_order character varying(100) NOT NULL,
    state character varying(20) NOT NULL,
    leased_at bigint NOT NULL,
    lease_until bigint NOT NULL,
    CONSTRAINT assignment_state_check CHECK (((state)::text = ANY ((ARRAY['leased'::character varying, 'done'::character varying, 'skipped'::character varying, 'expired'::character varying])::text[])))
);
CREATE SEQUENCE assignment_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE assignment_id_seq OWNED BY assignment.id;
CREATE TABLE event (
    id bigint NOT NULL,
    at bigint NOT NULL,
    user_id bigint,
    verb character varying(40) NOT NULL,
    object character varying(40) NOT NULL,
    object_id bigint,
    detail json NOT NULL
);
CREATE SEQUENCE event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE event_id_seq OWNED BY event.id;
CREATE TABLE guideline (
    id bigint NOT NULL,
    round_id bigint NOT NULL,
    version integer NOT NULL,
    markdown json NOT NULL,
    created_at bigint NOT NULL
);
CREATE SEQUENCE guideline_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE guideline_id_seq OWNED BY guideline.id;
CREATE TABLE judgement (
    id bigint NOT NULL,
    assignment_id bigint NOT NULL,
    task_id bigint NOT NULL,
    user_id bigint NOT NULL,
    revision integer NOT NULL,
    supersedes_id bigint,
    client_token character varying(100) NOT NULL,
    choice character varying(20) NOT NULL,
    response_id bigint,
    probability double precision,
    margin double precision,
    shown_at bigint,
    decided_at bigint,
    received_at bigint NOT NULL,
    active_ms bigint,
    wall_ms bigint,
    keys_used boolean,
    late boolean NOT NULL,
    app_version character varying(40) NOT NULL,
    CONSTRAINT judgement_check CHECK ((((choice)::text = 'response'::text) = (response_id IS NOT NULL))),
    CONSTRAINT judgement_choice_check CHECK (((choice)::text = ANY ((ARRAY['response'::character varying, 'tie'::character varying, 'all_bad'::character varying, 'skip'::character varying, 'withdrawn'::character varying])::text[])))
);
CREATE SEQUENCE judgement_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE judgement_id_seq OWNED BY judgement.id;
CREATE TABLE login_session (
    id_sha256 character varying(64) NOT NULL,
    user_id bigint NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL
);
CREATE TABLE prompt (
    id bigint NOT NULL,
    digest character varying(64) NOT NULL,
    messages json NOT NULL
);
CREATE SEQUENCE prompt_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE prompt_id_seq OWNED BY prompt.id;
CREATE TABLE response (
    id bigint NOT NULL,
    prompt_id bigint NOT NULL,
    digest character varying(64) NOT NULL,
    messages json NOT NULL,
    sampler_digest character varying(64) NOT NULL,
    finish character varying(10)
);
CREATE SEQUENCE response_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE response_id_seq OWNED BY response.id;
CREATE TABLE round (
    id bigint NOT NULL,
    number integer NOT NULL,
    name character varying(200) NOT NULL,
    source_digest character varying(64) NOT NULL,
    overlap integer NOT NULL,
    lease_s integer NOT NULL,
    shuffle_seed bigint NOT NULL,
    state character varying(20) DEFAULT 'open'::character varying NOT NULL,
    created_at bigint NOT NULL,
    CONSTRAINT round_overlap_check CHECK ((overlap >= 1))
);
CREATE SEQUENCE round_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE round_id_seq OWNED BY round.id;
CREATE TABLE schema_version (
    version integer NOT NULL,
    applied_at bigint NOT NULL
);
CREATE TABLE task (
    id bigint NOT NULL,
    round_id bigint NOT NULL,
    prompt_id bigint NOT NULL,
    digest character varying(64) NOT NULL,
    priority double precision DEFAULT '0'::double precision NOT NULL,
    needed integer NOT NULL,
    open_slots integer NOT NULL,
    done integer DEFAULT 0 NOT NULL,
    state character varying(20) DEFAULT 'open'::character varying NOT NULL,
    meta json NOT NULL,
    CONSTRAINT task_open_slots_check CHECK ((open_slots >= 0)),
    CONSTRAINT task_state_check CHECK (((state)::text = ANY ((ARRAY['open'::character varying, 'retired'::character varying])::text[])))
);
CREATE SEQUENCE task_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE task_id_seq OWNED BY task.id;
CREATE TABLE task_response (
    task_id bigint NOT NULL,
    "position" integer NOT NULL,
    response_id bigint NOT NULL
);
CREATE TABLE "user" (
    id bigint NOT NULL,
    name character varying(200) NOT NULL,
    display_name character varying(200) NOT NULL,
    role character varying(20) NOT NULL,
    state character varying(20) DEFAULT 'active'::character varying NOT NULL,
    created_at bigint NOT NULL
);
CREATE SEQUENCE user_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE user_id_seq OWNED BY "user".id;
ALTER TABLE ONLY assignment ALTER COLUMN id SET DEFAULT nextval('assignment_id_seq'::regclass);
ALTER TABLE ONLY event ALTER COLUMN id SET DEFAULT nextval('event_id_seq'::regclass);
ALTER TABLE ONLY guideline ALTER COLUMN id SET DEFAULT nextval('guideline_id_seq'::regclass);
ALTER TABLE ONLY judgement ALTER COLUMN id SET DEFAULT nextval('judgement_id_seq'::regclass);
ALTER TABLE ONLY prompt ALTER COLUMN id SET DEFAULT nextval('prompt_id_seq'::regclass);
ALTER TABLE ONLY response ALTER COLUMN id SET DEFAULT nextval('response_id_seq'::regclass);
ALTER TABLE ONLY round ALTER COLUMN id SET DEFAULT nextval('round_id_seq'::regclass);
ALTER TABLE ONLY task ALTER COLUMN id SET DEFAULT nextval('task_id_seq'::regclass);
ALTER TABLE ONLY "user" ALTER COLUMN id SET DEFAULT nextval('user_id_seq'::regclass);
INSERT INTO assignment VALUES
	(1, 1, 1, 'judge', '[1, 0]', 'done', 1700000000000, 1700000060000),
	(2, 2, 1, 'judge', '[0, 1]', 'done', 1700000000000, 1700000060000),
	(3, 3, 1, 'judge', '[1, 0]', 'skipped', 1700000000000, 1700000060000),
	(5, 1, 2, 'judge', '[0, 1]', 'done', 1700000200000, 1700000260000),
	(6, 2, 2, 'judge', '[1, 0]', 'done', 1700000200000, 1700000260000),
	(7, 3, 2, 'judge', '[0, 1]', 'done', 1700000200000, 1700000260000),
	(4, 4, 1, 'judge', '[0, 1]', 'done', 1700000007000, 1700000067000);
INSERT INTO event VALUES
	(1, 1795202515777, NULL, 'open', 'round', 1, '{"name": "people", "overlap": 2, "lease_s": 60}'),
	(2, 1795202515792, NULL, 'add', 'task', 1, '{"tasks": 6}'),
	(3, 1795202515798, 1, 'add', 'user', 1, '{"role": "annotator"}'),
	(4, 1795202515800, 2, 'add', 'user', 2, '{"role": "annotator"}'),
	(5, 1795202515801, 3, 'add', 'user', 3, '{"role": "simulated"}'),
	(6, 1700000002000, 1, 'submit', 'judgement', 1, '{}'),
	(7, 1700000003000, 1, 'submit', 'judgement', 2, '{}'),
	(8, 1700000004000, 1, 'revise', 'judgement', 3, '{}'),
	(9, 1700000005000, 1, 'submit', 'judgement', 4, '{}'),
	(10, 1700000006000, 1, 'submit', 'judgement', 5, '{}'),
	(11, 1700000007000, 1, 'undo', 'judgement', 5, '{}'),
	(12, 1700000200000, 1, 'expire', 'assignment', 4, '{}'),
	(13, 1700000201000, 2, 'submit', 'judgement', 7, '{}'),
	(14, 1700000201000, 2, 'submit', 'judgement', 8, '{}'),
	(15, 1700000201000, 2, 'submit', 'judgement', 9, '{}'),
	(16, 1700000900000, 1, 'revise', 'judgement', 10, '{"late": true}'),
	(17, 1795202515881, NULL, 'retire', 'task', 1, '{"tasks": 1}');
INSERT INTO guideline VALUES
	(1, 1, 1, '"Be kind."', 1795202515794),
	(2, 1, 2, '"Be kind, and true."', 1795202515796);
INSERT INTO judgement VALUES
	(1, 1, 1, 1, 1, NULL, 'ann-1', 'response', 1, NULL, NULL, 1700000000000, 1700000001200, 1700000002000, 1200, 1500, true, false, '1'),
	(2, 2, 2, 1, 1, NULL, 'ann-2', 'tie', NULL, NULL, NULL, NULL, NULL, 1700000003000, NULL, NULL, NULL, false, '1'),
	(3, 2, 2, 1, 2, 2, 'ann-3', 'response', 3, 0.9, 1.5, NULL, NULL, 1700000004000, NULL, NULL, NULL, false, '1'),
	(4, 3, 3, 1, 1, NULL, 'ann-4', 'skip', NULL, NULL, NULL, NULL, NULL, 1700000005000, NULL, NULL, NULL, false, '1'),
	(5, 4, 4, 1, 1, NULL, 'ann-5', 'all_bad', NULL, NULL, NULL, NULL, NULL, 1700000006000, NULL, NULL, NULL, false, '1'),
	(6, 4, 4, 1, 2, 5, 'ann-6', 'withdrawn', NULL, NULL, NULL, NULL, NULL, 1700000007000, NULL, NULL, NULL, false, '1'),
	(7, 5, 1, 2, 1, NULL, 'bob-0', 'tie', NULL, NULL, NULL, NULL, NULL, 1700000201000, NULL, NULL, NULL, false, '1'),
	(8, 6, 2, 2, 1, NULL, 'bob-1', 'tie', NULL, NULL, NULL, NULL, NULL, 1700000201000, NULL, NULL, NULL, false, '1'),
	(9, 7, 3, 2, 1, NULL, 'bob-2', 'tie', NULL, NULL, NULL, NULL, NULL, 1700000201000, NULL, NULL, NULL, false, '1'),
	(10, 4, 4, 1, 3, 6, 'ann-7', 'response', 7, NULL, NULL, NULL, NULL, 1700000900000, NULL, NULL, NULL, true, '1');
INSERT INTO login_session VALUES
	('f29d4969c0b2baa7282c68e29c45587de3faab969ea8889334f35c930b3a6bfe', 1, 1700000000000, 1702592000000);
INSERT INTO prompt VALUES
	(1, '7bddf9057e2e3a8b', '[{"role": "user", "content": "question 0"}]'),
	(2, 'd839f6724f9477c8', '[{"role": "user", "content": "question 1"}]'),
	(3, '0e17fb0cfeacdc83', '[{"role": "user", "content": "question 2"}]'),
	(4, 'e0d7c12bca904094', '[{"role": "user", "content": "question 3"}]'),
	(5, '2db0a4c61649a498', '[{"role": "user", "content": "question 4"}]'),
	(6, '8cbb5a91e54ef03a', '[{"role": "user", "content": "question 5"}]');
INSERT INTO response VALUES
	(1, 1, '0813ef189bcf5a91', '[{"role": "assistant", "content": "good 0"}]', 's1', 'eos'),
	(2, 1, '21b242c974ebed8c', '[{"role": "assistant", "content": "bad 0 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length'),
	(3, 2, '6de5bd111d4ac677', '[{"role": "assistant", "content": "good 1"}]', 's1', 'eos'),
	(4, 2, '697dab8ab27b881c', '[{"role": "assistant", "content": "bad 1 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length'),
	(5, 3, '9cef7eed5ad5e482', '[{"role": "assistant", "content": "good 2"}]', 's1', 'eos'),
	(6, 3, '0ece8ad2100be013', '[{"role": "assistant", "content": "bad 2 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length'),
	(7, 4, '5d03b8b89666f531', '[{"role": "assistant", "content": "good 3"}]', 's1', 'eos'),
	(8, 4, '6e1708d592e00956', '[{"role": "assistant", "content": "bad 3 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length'),
	(9, 5, 'e83e30e0589a5c5c', '[{"role": "assistant", "content": "good 4"}]', 's1', 'eos'),
	(10, 5, '1e5a7f2692b53077', '[{"role": "assistant", "content": "bad 4 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length'),
	(11, 6, '4e7195e20434a4ce', '[{"role": "assistant", "content": "good 5"}]', 's1', 'eos'),
	(12, 6, 'e011cff87a907698', '[{"role": "assistant", "content": "bad 5 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]', 's1', 'length');
INSERT INTO round VALUES
	(1, 1, 'people', 'd1', 2, 60, 7, 'open', 1795202515777);
INSERT INTO schema_version VALUES
	(1, 1795202515736);
INSERT INTO task VALUES
	(5, 1, 5, '1ee0008af8d8e0185a6cd7df42a49fda', 0, 2, 2, 0, 'open', '{"n": 4}'),
	(1, 1, 1, 'b0a83a40b9bf609d63f680d1510eba74', 0, 2, 0, 2, 'open', '{"n": 0}'),
	(2, 1, 2, 'a498aef6808521e4164f8f1e19c2eb65', 0, 2, 0, 2, 'open', '{"n": 1}'),
	(3, 1, 3, 'e62533a0ee9d3896de32893d7f045065', 0, 2, 1, 1, 'open', '{"n": 2}'),
	(4, 1, 4, '8a99eb4663c5e0205c22cdb9b0cf5f22', 0, 2, 1, 1, 'open', '{"n": 3}'),
	(6, 1, 6, '3fcf5c5d85bd4640b6149531c98d75b1', 0, 2, 0, 0, 'retired', '{"n": 5}');
INSERT INTO task_response VALUES
	(1, 0, 1),
	(1, 1, 2),
	(2, 0, 4),
	(2, 1, 3),
	(3, 0, 6),
	(3, 1, 5),
	(4, 0, 7),
	(4, 1, 8),
	(5, 0, 10),
	(5, 1, 9),
	(6, 0, 11),
	(6, 1, 12);
INSERT INTO "user" VALUES
	(1, 'ann', 'Ann', 'annotator', 'active', 1795202515798),
	(2, 'bob', 'Bob', 'annotator', 'active', 1795202515800),
	(3, 'ada the expert', 'Ada the expert', 'simulated', 'active', 1795202515801);
SELECT pg_catalog.setval('assignment_id_seq', 7, true);
SELECT pg_catalog.setval('event_id_seq', 17, true);
SELECT pg_catalog.setval('guideline_id_seq', 2, true);
SELECT pg_catalog.setval('judgement_id_seq', 10, true);
SELECT pg_catalog.setval('prompt_id_seq', 6, true);
SELECT pg_catalog.setval('response_id_seq', 12, true);
SELECT pg_catalog.setval('round_id_seq', 1, true);
SELECT pg_catalog.setval('task_id_seq', 6, true);
SELECT pg_catalog.setval('user_id_seq', 3, true);
ALTER TABLE ONLY assignment
    ADD CONSTRAINT assignment_pkey PRIMARY KEY (id);
ALTER TABLE ONLY assignment
    ADD CONSTRAINT assignment_task_id_user_id_purpose_key UNIQUE (task_id, user_id, purpose);
ALTER TABLE ONLY event
    ADD CONSTRAINT event_pkey PRIMARY KEY (id);
ALTER TABLE ONLY guideline
    ADD CONSTRAINT guideline_pkey PRIMARY KEY (id);
ALTER TABLE ONLY guideline
    ADD CONSTRAINT guideline_round_id_version_key UNIQUE (round_id, version);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_assignment_id_revision_key UNIQUE (assignment_id, revision);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_client_token_key UNIQUE (client_token);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_pkey PRIMARY KEY (id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_supersedes_id_key UNIQUE (supersedes_id);
ALTER TABLE ONLY login_session
    ADD CONSTRAINT login_session_pkey PRIMARY KEY (id_sha256);
ALTER TABLE ONLY prompt
    ADD CONSTRAINT prompt_digest_key UNIQUE (digest);
ALTER TABLE ONLY prompt
    ADD CONSTRAINT prompt_pkey PRIMARY KEY (id);
ALTER TABLE ONLY response
    ADD CONSTRAINT response_pkey PRIMARY KEY (id);
ALTER TABLE ONLY response
    ADD CONSTRAINT response_prompt_id_digest_sampler_digest_key UNIQUE (prompt_id, digest, sampler_digest);
ALTER TABLE ONLY round
    ADD CONSTRAINT round_name_source_digest_key UNIQUE (name, source_digest);
ALTER TABLE ONLY round
    ADD CONSTRAINT round_number_key UNIQUE (number);
ALTER TABLE ONLY round
    ADD CONSTRAINT round_pkey PRIMARY KEY (id);
ALTER TABLE ONLY schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (version);
ALTER TABLE ONLY task
    ADD CONSTRAINT task_pkey PRIMARY KEY (id);
ALTER TABLE ONLY task_response
    ADD CONSTRAINT task_response_pkey PRIMARY KEY (task_id, "position");
ALTER TABLE ONLY task_response
    ADD CONSTRAINT task_response_task_id_response_id_key UNIQUE (task_id, response_id);
ALTER TABLE ONLY task
    ADD CONSTRAINT task_round_id_digest_key UNIQUE (round_id, digest);
ALTER TABLE ONLY "user"
    ADD CONSTRAINT user_name_key UNIQUE (name);
ALTER TABLE ONLY "user"
    ADD CONSTRAINT user_pkey PRIMARY KEY (id);
CREATE INDEX assignment_of_user ON assignment USING btree (user_id, state);
CREATE INDEX assignment_to_expire ON assignment USING btree (lease_until) WHERE ((state)::text = 'leased'::text);
CREATE INDEX judgement_of_task ON judgement USING btree (task_id);
CREATE INDEX judgement_of_user ON judgement USING btree (user_id);
CREATE INDEX task_to_lease ON task USING btree (round_id, priority DESC, id) WHERE (open_slots > 0);
CREATE TRIGGER event_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON event FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER judgement_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON judgement FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE ONLY assignment
    ADD CONSTRAINT assignment_task_id_fkey FOREIGN KEY (task_id) REFERENCES task(id);
ALTER TABLE ONLY assignment
    ADD CONSTRAINT assignment_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user"(id);
ALTER TABLE ONLY event
    ADD CONSTRAINT event_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user"(id);
ALTER TABLE ONLY guideline
    ADD CONSTRAINT guideline_round_id_fkey FOREIGN KEY (round_id) REFERENCES round(id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_assignment_id_fkey FOREIGN KEY (assignment_id) REFERENCES assignment(id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_response_id_fkey FOREIGN KEY (response_id) REFERENCES response(id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_supersedes_id_fkey FOREIGN KEY (supersedes_id) REFERENCES judgement(id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_task_id_fkey FOREIGN KEY (task_id) REFERENCES task(id);
ALTER TABLE ONLY judgement
    ADD CONSTRAINT judgement_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user"(id);
ALTER TABLE ONLY login_session
    ADD CONSTRAINT login_session_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user"(id);
ALTER TABLE ONLY response
    ADD CONSTRAINT response_prompt_id_fkey FOREIGN KEY (prompt_id) REFERENCES prompt(id);
ALTER TABLE ONLY task
    ADD CONSTRAINT task_prompt_id_fkey FOREIGN KEY (prompt_id) REFERENCES prompt(id);
ALTER TABLE ONLY task_response
    ADD CONSTRAINT task_response_response_id_fkey FOREIGN KEY (response_id) REFERENCES response(id);
ALTER TABLE ONLY task_response
    ADD CONSTRAINT task_response_task_id_fkey FOREIGN KEY (task_id) REFERENCES task(id);
ALTER TABLE ONLY task
    ADD CONSTRAINT task_round_id_fkey FOREIGN KEY (round_id) REFERENCES round(id);
