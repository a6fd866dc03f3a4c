"""Wrong configs and arguments."""
from catalogue import STAGE, Base, Case, run_all


def write(name, data):
    def prepare(folder):
        with open(f"{folder}/{name}", "wb") as file:
            file.write(data)
    return prepare


def yaml(name, code, data, *words, **more):
    return Case(name, code, *words, arguments=["--config", "FOLDER/x.yaml"], prepare=write("x.yaml", data), **more)


def config_cases():
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(9))
    return [
        Case("unknown key", 2, "optimizer.lrr: unknown key", "did you mean optimizer.lr?", "--set optimizer.lrr=1", settings=["optimizer.lrr=1"]),
        Case("unknown nested key in the file", 2, "stages.0.optimizer.warmup", "did you mean", "config.yaml:", changes={"stages": [{**STAGE, "optimizer": {"warmup": 3}}]}),
        Case("unknown key of another group", 2, "did you mean optimizer.clip_norm?", settings=["clip_norm=1"]),
        Case("unknown stage in --set", 2, "did you mean all?", settings=["stages.al.steps=3"]),
        Case("wrong type", 2, "optimizer.lr: got fast, expected a number", settings=["optimizer.lr=fast"]),
        Case("several faults at once", 2, "3 faults", "seed", "device", "save.every", settings=["seed=-1", "device=gpu", "save.every=often"]),
        Case("list instead of a group", 2, "optimizer: got a list, expected a mapping", settings=["optimizer=[1]"]),
        Case("contradictory keys at once", 2, "stages.all.length", "eval.patience", "stages.all.optimizer", "mixture", settings=[
            "stages.all.tokens=100", "eval.patience=2", "eval.set=''", "optimizer.beta1=1", "stages.all.mixture.nobody=1"]),
        Case("negative rate", 2, "optimizer.lr: got -1, expected at least 0", settings=["optimizer.lr=-1"]),
        Case("NaN decay", 2, "optimizer.weight_decay: got nan, expected a number", settings=["optimizer.weight_decay=nan"]),
        Case("infinite norm", 2, "optimizer.clip_norm", settings=["optimizer.clip_norm=.inf"]),
        Case("negative rate scale", 2, "optimizer.groups.0.lr_scale", settings=["optimizer.groups=[{match: '**', lr_scale: -2}]"]),
        Case("overflowing number", 2, "save.every", settings=["save.every=99999999999999999999"]),
        *(Case(f"{key} beyond all numbers", 2, f"{key.replace('.all.', '.0.')}: got", "expected at most", settings=[f"{key}={value}"]) for key, value in [
            ("stages.all.epochs", "1e19"), ("stages.all.tokens", "1e300"), ("optimizer.warmup_tokens", "1e300"),
            ("optimizer.warmup_tokens", "9223372036854775807"), ("stages.all.mixture.train", "1e308"), ("log.stall_timeout_s", "1e300")]),
        Case("taps that do not rise", 2, "model.taps: got [1, 0]", "rising", settings=["model.taps=[1, 0]"]),
        Case("four colours", 2, "model.tower.channels: got 4, expected 3", settings=["model.tower.channels=4"]),
        Case("stage with an endless name", 2, "stages.N.name", "at most 200", changes={"stages": [{**STAGE, "name": "x" * 256}]}),
        Case("-np against the layout", 2, "layout: got -np 2", "tp 3", ranks=(2,), settings=["parallel.tp=3", "stages.all.seq_len=510"]),
        Case("-np against dp", 2, "layout: got -np", "dp 5", "mpirun -np 5", settings=["parallel.dp=5"]),
        Case("layout whose product overflows", 2, "parallel.tp", settings=["parallel.tp=4294967296", "parallel.pp=4294967296"]),
        Case("heads not divisible", 2, "model.decoder.heads: got 4", "parallel.tp = 3", ranks=(3,),
             settings=["parallel.tp=3", "stages.all.seq_len=510", "stages.all.rows_per_step=3"]),
        Case("more pipeline stages than layers", 2, "pipeline: got 7 pieces", "at most 6", ranks=(7,), settings=["parallel.pp=7"]),
        Case("chunks that the schedule has not", 2, "parallel.chunks: got 3", "set chunks: 0", ranks=(2,), settings=["parallel.pp=2", "parallel.chunks=3"]),
        Case("room that the schedule has no use for", 2, "parallel.pp_room: got 2", "set pp_room: 0", ranks=(2,), settings=["parallel.pp=2", "parallel.schedule=zb-h1", "parallel.pp_room=2"]),
        Case("layers of pieces that are not the model's", 2, "parallel.pp_layers", ranks=(2,), settings=["parallel.pp=2", "parallel.pp_layers=[1, 2]"]),
        Case("heads that context ranks do not divide", 2, "parallel.context: got heads", "gather or ring", ranks=(3,),
             settings=["parallel.cp=3", "parallel.context=heads"]),
        Case("experts of a model without", 2, "parallel.ep: got 2", "leave ep at 1", ranks=(2,), settings=["parallel.ep=2"]),
        Case("cache with an impossible name", 6, "data.cache: got \"File name too long\"", "choose another", settings=["data.cache=" + "x" * 300]),
        Case("tensor parallel experts of a model without", 2, "parallel.etp: got 2, expected a divisor of model.decoder.expert_ffn = 0", "this model has no experts: leave etp at 1", ranks=(2,), settings=["parallel.etp=2"]),
        Case("unknown command", 2, "command: got trian", "expected one of", "did you mean train?", arguments=["trian"]),
        Case("unknown flag", 2, "--confg", "did you mean --config?", arguments=["--confg=1"]),
        Case("flag without a value", 2, "--output", "expected --output VALUE", arguments=["export", "--config", "x", "--output"]),
        Case("mesh that is none", 2, "--mesh: got \"tp2;dp2\"", "for example tp2,dp4", arguments=["plan", "--mesh", "tp2;dp2"]),
        Case("mesh of nothing", 2, "tp", arguments=["plan", "--mesh", "tp0"]),
        Case("unknown GPU", 2, "--gpu", "expected", "h200", arguments=["plan", "--gpu", "h20"]),
        Case("no config", 2, "--config: got none", arguments=["--config="]),
        Case("config that is absent", 2, "config: got No such file", "nowhere.yaml", arguments=["--config", "FOLDER/nowhere.yaml"]),
        Case("config that is a folder", 2, "config: got a folder, expected a YAML file", arguments=["--config", "FOLDER"]),
        Case("--set without a value", 2, "--set: got seed, expected KEY=VALUE", settings=["seed"]),
        Case("--set that is not YAML", 2, "--set seed=[1", "not YAML", settings=["seed=[1"]),
        Case("unknown glob", 2, "trainable: got \"conector.**\"", "expected a glob", lacks=("packed in",), settings=["stages.all.trainable=[conector.**]"]),
        Case("glob of decay that matches nothing", 2, "optimizer.no_decay: got \"**.biass\"", "expected a glob", lacks=("packed in",), settings=["optimizer.no_decay=[\"**.biass\"]"]),
        yaml("empty config", 2, b"", "stages: got none"),
        yaml("config of a BOM and a key", 2, b"\xef\xbb\xbfname: x\n", "stages: got none"),
        yaml("UTF-16 config is YAML too", 2, "name: x\n".encode("utf-16"), "stages: got none"),
        yaml("binary config", 2, bytes(range(256)) * 4, "x.yaml"),
        yaml("key written twice", 2, b"name: a\nname: b\n", "name: got the key twice", "x.yaml:1 and", "x.yaml:2"),
        yaml("tabs", 2, b"model:\n\tdtype: auto\n", "x.yaml:2", "not YAML"),
        yaml("list as config", 2, b"- a\n- b\n", "config: got a list, expected a mapping of keys"),
        yaml("text as config", 2, b"hello", "config: got hello, expected a mapping of keys"),
        yaml("aliases that multiply", 2, bomb, "alias", "x.yaml"),
        yaml("alias that holds itself", 2, b"a: &a [*a]\n", "x.yaml"),
        yaml("deep nesting", 2, b"a: " + b"[" * 100000 + b"]" * 100000, "x.yaml"),
        yaml("two documents", 2, b"name: a\n---\nname: b\n", "2 YAML documents"),
        yaml("bases in a circle", 2, b"base: x.yaml\n", "base: got files that include each other"),
        yaml("base that is absent", 2, b"base: y.yaml\n", "y.yaml"),
        Case("config that never ends", 2, "config: got more than", "/dev/zero", arguments=["--config", "/dev/zero"]),
        Case("name that is a path", 2, "name: got \"../x\"", settings=["name=../x"]),
        yaml("empty key", 2, b"'': 3\n", "\"\": unknown key"),
    ]


if __name__ == "__main__":
    run_all(Base(), config_cases())
