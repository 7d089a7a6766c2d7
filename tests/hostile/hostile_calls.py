"""Entries that are statements of Python: arguments of another kind."""

from hostile_entry import Entry

NO_PATH = "no path here|must be a path"


def of_calls():
    for statement, says in (
        ("run(None)", "None is no benchmark"),
        ("run(['resnet'])", "is no benchmark"),
        ("run(3)", "3 is no benchmark"),
        ("run('')", "no benchmark ''"),
        ("run('resnet', tiny='no')", "tiny must be True or False, not 'no'"),
        ("run('resnet', tiny=1)", "tiny must be True or False"),
        ("run('resnet', tiny=True, output=3)", "output must be a path"),
        ("run('resnet', tiny=True, output=b'x')", "output must be a path"),
        ("run('resnet', tiny=True, output='x' * 300)", "output must be a path"),
        ("run('resnet', tiny=True, output='a\\0b')", "output must be a path"),
        ("run('resnet', tiny=True, data_dir='a\\0b')", "data_dir must be a path"),
        ("run('resnet', tiny=True, mesh={'data': 3})", "mesh must be some text or None"),
        ("run('resnet', tiny=True, seed=float('nan'))", "seed must be a whole number"),
        ("run('resnet', tiny=True, seed=True)", "seed must be a whole number"),
        ("run('resnet', tiny=True, optimizer=3)", "3 has no init and update"),
        ("run('resnet', tiny=True, targets=3)", "targets must be one or more Targets"),
        ("run('resnet', tiny=True, stages=())", "stages must be one or more"),
        ("run('resnet', tiny=True, bn_span=0)", "bn_span must be a whole number of images"),
        ("run('resnet', tiny=True, base_lr='0.1')", "base_lr must be a number"),
        ("run('resnet', tiny=True, base_lr=float('inf'))", "base_lr must be a number"),
        ("run('unet3d', tiny=True, patch=0)", "has no setting 'patch'|patch"),
        ("run('dlrm_dcnv2', tiny=True, bottom=())", "bottom must be|has no setting"),
        ("run('resnet', tiny=True, **{'': 3})", "has no setting ''"),
        ("run('resnet', tiny=True, size='tiny')", "size is no setting of its own"),
        ("run('resnet', tiny=True, seeds=[1, 1])", "seeds has 1 twice"),
        ("run('resnet', tiny=True, runs=2, seed=1)", "seeds of their own"),
        ("get(None)", "None is no benchmark"),
        ("get('resnet', tiny=True, batch_size=0)", "batch_size must be"),
        ("get('resnet', tiny=True, opt_name='sgd')", "give convention tf2"),
        ("get('resnet', nosuch=1)", "nosuch"),
        ("register(3)", "3 is no benchmark|is no class"),
        ("load(None)", "None is no folder of a run"),
        ("load(3)", "3 is no folder of a run"),
        ("load('no/such')", "is not the folder of a run"),
        ("load('x' * 300)", NO_PATH),
        ("load('a\\0b')", NO_PATH),
        ("save_adapter(None, 'new')", "None is no folder of a run"),
        ("save_adapter('no/such', 'new')", "is not the folder of a run"),
        ("run('llama2_70b_lora', tiny=True, adapter=3)", "adapter must be a path"),
        ("run('llama2_70b_lora', tiny=True, adapter='a\\0b')", "adapter must be a path"),
        ("evaluate(None)", NO_PATH),
        ("evaluate('x' * 300)", NO_PATH),
        ("evaluate('no/such')", "holds no run"),
        ("curves(3)", "3 is no folder of a run"),
        ("curves('no/such')", "is not the folder of a run"),
        ("curves()", "no run|give"),
        ("show(None)", "None is no benchmark"),
        ("show('resnet', tiny=True, output='a.jpg')", "must end in .png"),
        ("show('resnet', tiny=True, split='nosuch')", "split"),
        ("show('resnet', tiny=True, samples=0)", "samples"),
        ("table('9.9')", "there is no ruleset '9.9'"),
        ("table(3)", "there is no ruleset 3"),
    ):
        yield Entry(f"benchmarks.{statement}", says, python=True)
    for statement, says in (
        ("check(None)", NO_PATH),
        ("check(3)", NO_PATH),
        ("check('x' * 300)", NO_PATH),
        ("check('no/such')", "does not exist"),
        ("check('no/such', division='ajar')", "division is 'ajar'"),
        ("events.convert(None)", NO_PATH),
        ("events.convert('x' * 300)", NO_PATH),
        ("events.convert('no/such')", "is not the folder of a run"),
    ):
        yield Entry(f"results.{statement}", says, python=True)


ENTRIES = list(of_calls())
