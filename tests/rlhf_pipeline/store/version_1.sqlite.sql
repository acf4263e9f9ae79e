BEGIN TRANSACTION;
CREATE TABLE assignment (
	id INTEGER NOT NULL, 
	task_id INTEGER NOT NULL, 
	user_id INTEGER NOT NULL, 
	purpose VARCHAR(20) DEFAULT 'judge' NOT NULL, 
	shown_order VARCHAR(100) NOT NULL, 
	state VARCHAR(20) NOT NULL, 
	leased_at BIGINT NOT NULL, 
	lease_until BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (task_id, user_id, purpose), 
	CHECK (state IN ('leased', 'done', 'skipped', 'expired')), 
	FOREIGN KEY(task_id) REFERENCES task (id), 
	FOREIGN KEY(user_id) REFERENCES user (id)
);
INSERT INTO "assignment" VALUES(1,1,1,'judge','[1, 0]','done',1700000000000,1700000060000);
INSERT INTO "assignment" VALUES(2,2,1,'judge','[0, 1]','done',1700000000000,1700000060000);
INSERT INTO "assignment" VALUES(3,3,1,'judge','[1, 0]','skipped',1700000000000,1700000060000);
INSERT INTO "assignment" VALUES(4,4,1,'judge','[0, 1]','done',1700000007000,1700000067000);
INSERT INTO "assignment" VALUES(5,1,2,'judge','[0, 1]','done',1700000200000,1700000260000);
INSERT INTO "assignment" VALUES(6,2,2,'judge','[1, 0]','done',1700000200000,1700000260000);
INSERT INTO "assignment" VALUES(7,3,2,'judge','[0, 1]','done',1700000200000,1700000260000);
CREATE TABLE event (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	user_id INTEGER, 
	verb VARCHAR(40) NOT NULL, 
	object VARCHAR(40) NOT NULL, 
	object_id INTEGER, 
	detail JSON NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(user_id) REFERENCES user (id)
);
INSERT INTO "event" VALUES(1,1795202514078,NULL,'open','round',1,'{"name": "people", "overlap": 2, "lease_s": 60}');
INSERT INTO "event" VALUES(2,1795202514085,NULL,'add','task',1,'{"tasks": 6}');
INSERT INTO "event" VALUES(3,1795202514088,1,'add','user',1,'{"role": "annotator"}');
INSERT INTO "event" VALUES(4,1795202514089,2,'add','user',2,'{"role": "annotator"}');
INSERT INTO "event" VALUES(5,1795202514090,3,'add','user',3,'{"role": "simulated"}');
INSERT INTO "event" VALUES(6,1700000002000,1,'submit','judgement',1,'{}');
INSERT INTO "event" VALUES(7,1700000003000,1,'submit','judgement',2,'{}');
INSERT INTO "event" VALUES(8,1700000004000,1,'revise','judgement',3,'{}');
INSERT INTO "event" VALUES(9,1700000005000,1,'submit','judgement',4,'{}');
INSERT INTO "event" VALUES(10,1700000006000,1,'submit','judgement',5,'{}');
INSERT INTO "event" VALUES(11,1700000007000,1,'undo','judgement',5,'{}');
INSERT INTO "event" VALUES(12,1700000200000,1,'expire','assignment',4,'{}');
INSERT INTO "event" VALUES(13,1700000201000,2,'submit','judgement',7,'{}');
INSERT INTO "event" VALUES(14,1700000201000,2,'submit','judgement',8,'{}');
INSERT INTO "event" VALUES(15,1700000201000,2,'submit','judgement',9,'{}');
INSERT INTO "event" VALUES(16,1700000900000,1,'revise','judgement',10,'{"late": true}');
INSERT INTO "event" VALUES(17,1795202514173,NULL,'retire','task',1,'{"tasks": 1}');
CREATE TABLE guideline (
	id INTEGER NOT NULL, 
	round_id INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	markdown JSON NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (round_id, version), 
	FOREIGN KEY(round_id) REFERENCES round (id)
);
INSERT INTO "guideline" VALUES(1,1,1,'"Be kind."',1795202514086);
INSERT INTO "guideline" VALUES(2,1,2,'"Be kind, and true."',1795202514087);
CREATE TABLE judgement (
	id INTEGER NOT NULL, 
	assignment_id INTEGER NOT NULL, 
	task_id INTEGER NOT NULL, 
	user_id INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	supersedes_id INTEGER, 
	client_token VARCHAR(100) NOT NULL, 
	choice VARCHAR(20) NOT NULL, 
	response_id INTEGER, 
	probability FLOAT, 
	margin FLOAT, 
	shown_at BIGINT, 
	decided_at BIGINT, 
	received_at BIGINT NOT NULL, 
	active_ms BIGINT, 
	wall_ms BIGINT, 
	keys_used BOOLEAN, 
	late BOOLEAN NOT NULL, 
	app_version VARCHAR(40) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (assignment_id, revision), 
	CHECK (choice IN ('response', 'tie', 'all_bad', 'skip', 'withdrawn')), 
	CHECK ((choice = 'response') = (response_id IS NOT NULL)), 
	FOREIGN KEY(assignment_id) REFERENCES assignment (id), 
	FOREIGN KEY(task_id) REFERENCES task (id), 
	FOREIGN KEY(user_id) REFERENCES user (id), 
	UNIQUE (supersedes_id), 
	FOREIGN KEY(supersedes_id) REFERENCES judgement (id), 
	UNIQUE (client_token), 
	FOREIGN KEY(response_id) REFERENCES response (id)
);
INSERT INTO "judgement" VALUES(1,1,1,1,1,NULL,'ann-1','response',1,NULL,NULL,1700000000000,1700000001200,1700000002000,1200,1500,1,0,'1');
INSERT INTO "judgement" VALUES(2,2,2,1,1,NULL,'ann-2','tie',NULL,NULL,NULL,NULL,NULL,1700000003000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(3,2,2,1,2,2,'ann-3','response',3,0.9,1.5,NULL,NULL,1700000004000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(4,3,3,1,1,NULL,'ann-4','skip',NULL,NULL,NULL,NULL,NULL,1700000005000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(5,4,4,1,1,NULL,'ann-5','all_bad',NULL,NULL,NULL,NULL,NULL,1700000006000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(6,4,4,1,2,5,'ann-6','withdrawn',NULL,NULL,NULL,NULL,NULL,1700000007000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(7,5,1,2,1,NULL,'bob-0','tie',NULL,NULL,NULL,NULL,NULL,1700000201000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(8,6,2,2,1,NULL,'bob-1','tie',NULL,NULL,NULL,NULL,NULL,1700000201000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(9,7,3,2,1,NULL,'bob-2','tie',NULL,NULL,NULL,NULL,NULL,1700000201000,NULL,NULL,NULL,0,'1');
INSERT INTO "judgement" VALUES(10,4,4,1,3,6,'ann-7','response',7,NULL,NULL,NULL,NULL,1700000900000,NULL,NULL,NULL,1,'1');
CREATE TABLE login_session (
	id_sha256 VARCHAR(64) NOT NULL, 
	user_id INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	PRIMARY KEY (id_sha256), 
	FOREIGN KEY(user_id) REFERENCES user (id)
);
INSERT INTO "login_session" VALUES('5a5c83daf1be4a47e653a1d76abbadce9b7e6107b52cac2508214e931f63cf73',1,1700000000000,1702592000000);
CREATE TABLE prompt (
	id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	messages JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
INSERT INTO "prompt" VALUES(1,'7bddf9057e2e3a8b','[{"role": "user", "content": "question 0"}]');
INSERT INTO "prompt" VALUES(2,'d839f6724f9477c8','[{"role": "user", "content": "question 1"}]');
INSERT INTO "prompt" VALUES(3,'0e17fb0cfeacdc83','[{"role": "user", "content": "question 2"}]');
INSERT INTO "prompt" VALUES(4,'e0d7c12bca904094','[{"role": "user", "content": "question 3"}]');
INSERT INTO "prompt" VALUES(5,'2db0a4c61649a498','[{"role": "user", "content": "question 4"}]');
INSERT INTO "prompt" VALUES(6,'8cbb5a91e54ef03a','[{"role": "user", "content": "question 5"}]');
CREATE TABLE response (
	id INTEGER NOT NULL, 
	prompt_id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	messages JSON NOT NULL, 
	sampler_digest VARCHAR(64) NOT NULL, 
	finish VARCHAR(10), 
	PRIMARY KEY (id), 
	UNIQUE (prompt_id, digest, sampler_digest), 
	FOREIGN KEY(prompt_id) REFERENCES prompt (id)
);
INSERT INTO "response" VALUES(1,1,'0813ef189bcf5a91','[{"role": "assistant", "content": "good 0"}]','s1','eos');
INSERT INTO "response" VALUES(2,1,'21b242c974ebed8c','[{"role": "assistant", "content": "bad 0 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
INSERT INTO "response" VALUES(3,2,'6de5bd111d4ac677','[{"role": "assistant", "content": "good 1"}]','s1','eos');
INSERT INTO "response" VALUES(4,2,'697dab8ab27b881c','[{"role": "assistant", "content": "bad 1 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
INSERT INTO "response" VALUES(5,3,'9cef7eed5ad5e482','[{"role": "assistant", "content": "good 2"}]','s1','eos');
INSERT INTO "response" VALUES(6,3,'0ece8ad2100be013','[{"role": "assistant", "content": "bad 2 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
INSERT INTO "response" VALUES(7,4,'5d03b8b89666f531','[{"role": "assistant", "content": "good 3"}]','s1','eos');
INSERT INTO "response" VALUES(8,4,'6e1708d592e00956','[{"role": "assistant", "content": "bad 3 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
INSERT INTO "response" VALUES(9,5,'e83e30e0589a5c5c','[{"role": "assistant", "content": "good 4"}]','s1','eos');
INSERT INTO "response" VALUES(10,5,'1e5a7f2692b53077','[{"role": "assistant", "content": "bad 4 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
INSERT INTO "response" VALUES(11,6,'4e7195e20434a4ce','[{"role": "assistant", "content": "good 5"}]','s1','eos');
INSERT INTO "response" VALUES(12,6,'e011cff87a907698','[{"role": "assistant", "content": "bad 5 a\u0000b \ud800 ''quoted'' \u0633\u0644\u0627\u0645\u202e\n\n  trailing  "}]','s1','length');
CREATE TABLE round (
	id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	source_digest VARCHAR(64) NOT NULL, 
	overlap INTEGER NOT NULL, 
	lease_s INTEGER NOT NULL, 
	shuffle_seed BIGINT NOT NULL, 
	state VARCHAR(20) DEFAULT 'open' NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name, source_digest), 
	CHECK (overlap >= 1), 
	UNIQUE (number)
);
INSERT INTO "round" VALUES(1,1,'people','d1',2,60,7,'open',1795202514078);
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	applied_at BIGINT NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1,1795202514070);
CREATE TABLE task (
	id INTEGER NOT NULL, 
	round_id INTEGER NOT NULL, 
	prompt_id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	priority FLOAT DEFAULT '0' NOT NULL, 
	needed INTEGER NOT NULL, 
	open_slots INTEGER NOT NULL, 
	done INTEGER DEFAULT '0' NOT NULL, 
	state VARCHAR(20) DEFAULT 'open' NOT NULL, 
	meta JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (round_id, digest), 
	CHECK (open_slots >= 0), 
	CHECK (state IN ('open', 'retired')), 
	FOREIGN KEY(round_id) REFERENCES round (id), 
	FOREIGN KEY(prompt_id) REFERENCES prompt (id)
);
INSERT INTO "task" VALUES(1,1,1,'b0a83a40b9bf609d63f680d1510eba74',0.0,2,0,2,'open','{"n": 0}');
INSERT INTO "task" VALUES(2,1,2,'a498aef6808521e4164f8f1e19c2eb65',0.0,2,0,2,'open','{"n": 1}');
INSERT INTO "task" VALUES(3,1,3,'e62533a0ee9d3896de32893d7f045065',0.0,2,1,1,'open','{"n": 2}');
INSERT INTO "task" VALUES(4,1,4,'8a99eb4663c5e0205c22cdb9b0cf5f22',0.0,2,1,1,'open','{"n": 3}');
INSERT INTO "task" VALUES(5,1,5,'1ee0008af8d8e0185a6cd7df42a49fda',0.0,2,2,0,'open','{"n": 4}');
INSERT INTO "task" VALUES(6,1,6,'3fcf5c5d85bd4640b6149531c98d75b1',0.0,2,0,0,'retired','{"n": 5}');
CREATE TABLE task_response (
	task_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	response_id INTEGER NOT NULL, 
	PRIMARY KEY (task_id, position), 
	UNIQUE (task_id, response_id), 
	FOREIGN KEY(task_id) REFERENCES task (id), 
	FOREIGN KEY(response_id) REFERENCES response (id)
);
INSERT INTO "task_response" VALUES(1,0,1);
INSERT INTO "task_response" VALUES(1,1,2);
INSERT INTO "task_response" VALUES(2,0,4);
INSERT INTO "task_response" VALUES(2,1,3);
INSERT INTO "task_response" VALUES(3,0,6);
INSERT INTO "task_response" VALUES(3,1,5);
INSERT INTO "task_response" VALUES(4,0,7);
INSERT INTO "task_response" VALUES(4,1,8);
INSERT INTO "task_response" VALUES(5,0,10);
INSERT INTO "task_response" VALUES(5,1,9);
INSERT INTO "task_response" VALUES(6,0,11);
INSERT INTO "task_response" VALUES(6,1,12);
CREATE TABLE user (
	id INTEGER NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	display_name VARCHAR(200) NOT NULL, 
	role VARCHAR(20) NOT NULL, 
	state VARCHAR(20) DEFAULT 'active' NOT NULL, 
	created_at BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "user" VALUES(1,'ann','Ann','annotator','active',1795202514088);
INSERT INTO "user" VALUES(2,'bob','Bob','annotator','active',1795202514089);
INSERT INTO "user" VALUES(3,'ada the expert','Ada the expert','simulated','active',1795202514090);
CREATE INDEX task_to_lease ON task (round_id, priority DESC, id) WHERE open_slots > 0;
CREATE INDEX assignment_of_user ON assignment (user_id, state);
CREATE INDEX assignment_to_expire ON assignment (lease_until) WHERE state = 'leased';
CREATE INDEX judgement_of_task ON judgement (task_id);
CREATE INDEX judgement_of_user ON judgement (user_id);
CREATE TRIGGER judgement_no_update BEFORE UPDATE ON judgement BEGIN SELECT RAISE(ABORT, 'judgement is append-only'); END;
CREATE TRIGGER judgement_no_delete BEFORE DELETE ON judgement BEGIN SELECT RAISE(ABORT, 'judgement is append-only'); END;
CREATE TRIGGER event_no_update BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;
COMMIT;
