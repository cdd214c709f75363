"""Tables for the reader, drawn at random, in Markdown and in words, with questions about their cells.

About half of the questions have no answer: the row, the column or the year is absent, or the cell is
empty. Chinese and English, and questions of one language over a table of the other.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Draw = Callable[[random.Random], str]


def number(low: float, high: float, digits: int = 0, unit: str = "") -> Draw:
    def draw(rng: random.Random) -> str:
        value = rng.uniform(low, high)
        return f"{value:,.{digits}f}{unit}" if rng.random() < 0.7 else f"{value:.{digits}f}{unit}"

    return draw


def day(rng: random.Random) -> str:
    return f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日"


def iso(rng: random.Random) -> str:
    return f"20{rng.randint(15, 25)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def hour(rng: random.Random) -> str:
    return f"{rng.randint(6, 21)}:{rng.choice(['00', '15', '30', '45'])}"


def of(words: str) -> Draw:
    choices = words.split()
    return lambda rng: rng.choice(choices)


PEOPLE = of(
    "王建国 李晓梅 赵志强 陈思远 周敏 吴俊杰 郑丽华 冯涛 韩雪 曹阳 邓文彬 彭飞 蒋欣 沈浩然 袁静 潘磊 戴薇 钟勇 姜楠 范卓"
)
NAMES = of("Miller Santos Okafor Lindgren Petrov Haddad Nakamura Duarte Kowalski Fischer Moreau Ricci")


@dataclass(frozen=True)
class Subject:
    """What a table is about: title with {year}, name of the first column, rows, and columns:
    Chinese name, English name, colloquial Chinese question with {row}, values."""

    title: str
    english: str
    key: str
    english_key: str
    rows: str
    english_rows: str
    columns: tuple[tuple[str, str, str, Draw], ...]


SUBJECTS = (
    Subject(
        "{year}年各县区主要经济指标", "Main indicators of districts, {year}", "县区", "District",
        "临江区 白云县 青山区 石桥县 东湖区 平安县 玉泉区 望城县 金山镇 龙潭县 新河区 太和县",
        "Ashford Brenton Corwell Dunmore Elmhurst Farley Gorton Hexley Ilford Kesley",
        (
            ("常住人口（万人）", "Population (10,000)", "{row}有多少人？", number(8, 180, 1)),
            ("生产总值（亿元）", "GDP (100 m yuan)", "{row}GDP多少？", number(60, 2400, 1)),
            ("粮食产量（万吨）", "Grain (10,000 t)", "{row}打了多少粮食？", number(2, 120, 1)),
            ("人均可支配收入（元）", "Income per head (yuan)", "{row}人均挣多少钱？", number(18000, 62000)),
            ("城镇化率", "Urbanisation", "{row}城镇化到百分之几了？", number(35, 96, 1, "%")),
            ("面积（平方公里）", "Area (km²)", "{row}有多大？", number(90, 3900)),
        ),
    ),
    Subject(
        "{year}年产品价目表", "Price list {year}", "产品", "Product",
        "A4复印纸 激光打印机 会议投影仪 人体工学椅 碎纸机 机械键盘 无线鼠标 27寸显示器 移动硬盘 路由器 白板 订书机",
        "Laser-printer Office-chair Projector Shredder Keyboard Monitor Router Whiteboard Headset Scanner",
        (
            ("单价（元）", "Unit price", "{row}多少钱一个？", number(9, 5900, 2)),
            ("库存", "Stock", "{row}还剩几件？", number(0, 900)),
            ("保修", "Warranty", "{row}保几年？", of("1年 2年 3年 6个月 5年")),
            ("产地", "Origin", "{row}是哪儿产的？", of("广东 江苏 浙江 山东 台湾 四川 福建 上海")),
            ("重量（千克）", "Weight (kg)", "{row}多重？", number(0.1, 30, 1)),
            ("型号", "Model", "{row}是啥型号？", lambda r: f"{r.choice('ABDFKMX')}{r.randint(10, 990)}-{r.choice('ABCLS')}"),
        ),
    ),
    Subject(
        "{year}年第{quarter}季度主要财务数据（万元）", "Key figures, Q{quarter} {year} (m euros)", "项目", "Item",
        "营业收入 营业成本 研发费用 销售费用 管理费用 净利润 经营现金流 资产总额 负债总额 应收账款",
        "Revenue EBIT Net-income Cash-flow Total-assets Equity Net-debt R&D-expense Inventories Receivables",
        (
            ("本期", "This period", "{row}这期是多少？", number(120, 98000, 2)),
            ("上年同期", "Same period last year", "{row}去年同期多少？", number(120, 98000, 2)),
            ("同比增减", "Change", "{row}同比变了百分之几？", number(-45, 80, 2, "%")),
            ("年初余额", "Opening balance", "{row}年初是多少？", number(100, 90000, 2)),
        ),
    ),
    Subject(
        "{year}年度培训安排", "Training plan {year}", "课程", "Course",
        "消防安全 新员工入职 项目管理 数据分析 商务礼仪 急救知识 信息安全 公文写作 沟通技巧 质量管理",
        "Fire-safety Onboarding Data-analysis First-aid Negotiation Quality Presentation Excel Security",
        (
            ("日期", "Date", "{row}哪天上课？", day),
            ("讲师", "Teacher", "{row}谁来讲？", PEOPLE),
            ("地点", "Room", "{row}在哪儿上？", lambda r: f"{r.choice('ABC')}{r.randint(101, 512)}"),
            ("课时", "Hours", "{row}上几个课时？", number(2, 40)),
            ("费用（元）", "Fee", "{row}要交多少钱？", number(100, 4800)),
            ("名额", "Seats", "{row}收几个人？", number(10, 120)),
        ),
    ),
    Subject(
        "{year}年水库水情表", "Reservoirs, {year}", "水库", "Reservoir",
        "清溪水库 红旗水库 双龙水库 大坪水库 石门水库 月亮湾水库 三岔水库 龙王庙水库 沙河水库",
        "Alder-Lake Black-Pool Cedar-Dam Dry-Creek Eagle-Dam Fern-Lake Grey-Dam",
        (
            ("水位（米）", "Level (m)", "{row}现在水位多少？", number(40, 420, 2)),
            ("蓄水量（万立方米）", "Volume", "{row}存了多少水？", number(90, 42000)),
            ("汛限水位（米）", "Flood limit (m)", "{row}汛限是多少米？", number(40, 420, 2)),
            ("责任人", "Officer", "{row}归谁管？", PEOPLE),
            ("建成年份", "Built", "{row}哪年修的？", lambda r: str(r.randint(1952, 2012))),
        ),
    ),
    Subject(
        "{year}年列车时刻（节选）", "Timetable {year}", "车次", "Train",
        "G1023 D3306 K528 G7215 Z164 T109 G656 D1842 C2201 K1173",
        "IC-204 RE-77 EC-9 IC-318 S-5 RB-61 IC-540 RE-12",
        (
            ("始发站", "From", "{row}从哪儿开？", of("北京西 郑州东 武昌 南京南 成都东 沈阳北 昆明 兰州西")),
            ("终到站", "To", "{row}开到哪儿？", of("广州南 上海虹桥 西安北 青岛 厦门北 贵阳 长春 海口")),
            ("发车时间", "Departure", "{row}几点开？", hour),
            ("到达时间", "Arrival", "{row}几点到？", hour),
            ("二等座票价（元）", "Second class", "{row}二等座多少钱？", number(20, 900, 1)),
        ),
    ),
    Subject(
        "{year}年仪器设备台账", "Equipment register {year}", "设备", "Device",
        "离心机 显微镜 高压灭菌锅 恒温培养箱 超净工作台 电子天平 液相色谱仪 烘箱 冷冻干燥机",
        "Centrifuge Microscope Autoclave Incubator Balance Freezer Spectrometer Oven",
        (
            ("购置日期", "Purchased", "{row}啥时候买的？", iso),
            ("金额（元）", "Cost", "{row}花了多少钱？", number(1200, 680000)),
            ("保管人", "Keeper", "{row}谁保管？", PEOPLE),
            ("存放地点", "Place", "{row}放在哪屋？", lambda r: f"{r.choice(['实验楼', '科研楼', '主楼'])}{r.randint(101, 620)}"),
            ("状态", "State", "{row}现在能用吗，啥状态？", of("正常 维修中 待报废 停用 借出")),
            ("供应商", "Supplier", "{row}从哪家买的？", of("华瑞科仪 博创仪器 远景设备 天宏实业 中科联合")),
        ),
    ),
    Subject(
        "{year}年渔业监测（吨）", "Landings {year} (tonnes)", "鱼种", "Species",
        "带鱼 小黄鱼 鲳鱼 鲅鱼 梭子蟹 对虾 墨鱼 鳗鱼 石斑鱼", "Cod Herring Mackerel Sole Squid Shrimp Tuna Crab Hake",
        (
            ("一季度", "Q1", "{row}一季度打了多少？", number(80, 9000)),
            ("二季度", "Q2", "{row}二季度打了多少？", number(80, 9000)),
            ("三季度", "Q3", "{row}三季度打了多少？", number(80, 9000)),
            ("四季度", "Q4", "{row}四季度打了多少？", number(80, 9000)),
            ("均价（元/公斤）", "Price per kg", "{row}一公斤多少钱？", number(6, 240, 1)),
        ),
    ),
)  # fmt: skip
_EMPTY = ("", "—", "-", "待定", "/", "")


def tables(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows as those of benchmarks/reader: passage, title, question, answer and `at`, or neither."""
    rng = random.Random(seed)
    for _ in range(count):
        yield from _table(rng)


def _table(rng: random.Random) -> Iterator[dict[str, Any]]:
    subject = rng.choice(SUBJECTS)
    english = rng.random() < 0.3
    pool = (subject.english_rows if english else subject.rows).split()
    if english and "IC" not in subject.english_rows:
        pool = [row.replace("-", " ") for row in pool]
    rows = rng.sample(pool, min(len(pool) - 2, rng.randint(3, 6)))
    columns = rng.sample(subject.columns, min(len(subject.columns) - 1, rng.randint(2, 4)))
    year, quarter = rng.randint(2015, 2024), rng.randint(1, 4)
    title = (subject.english if english else subject.title).format(year=year, quarter=quarter)
    cells = {(row, c[0]): c[3](rng) for row in rows for c in columns}
    if english:
        cells = {key: NAMES(rng) if c in ("讲师", "责任人", "保管人") else value
                 for key, value in cells.items() for c in [key[1]]}  # fmt: skip
    empty = rng.choice(list(cells))
    if rng.random() < 0.6:
        cells[empty] = rng.choice(_EMPTY)
    passage, places = _written(rng, subject, english, rows, columns, cells, title)
    known = passage.startswith(title)  # otherwise a question can't name the year
    absent_rows = [row for row in pool if row not in rows]
    absent_columns = [c for c in subject.columns if c not in columns]
    base = {"doc": "table", "passage": passage, "title": title if rng.random() < 0.7 else ""}
    for _ in range(2):
        row, column = rng.choice(rows), rng.choice(columns)
        if cells[row, column[0]] not in _EMPTY:
            question = _question(rng, row, column, english, year if known else 0)
            answer = cells[row, column[0]]
            yield {**base, "question": question, "answer": answer, "at": places[row, column[0]]}
    kind = rng.choice(["row", "column", "year", "empty"])
    row, column = rng.choice(rows), rng.choice(columns)
    if kind == "row":
        row = rng.choice(absent_rows)
    elif kind == "column":
        column = rng.choice(absent_columns)
    elif kind == "empty" and cells[empty] in _EMPTY:
        row, column = empty[0], next(c for c in columns if c[0] == empty[1])
    elif known:
        year += rng.choice([-2, -1, 1, 2])
        yield {**base, "question": _question(rng, row, column, english, year, always=True)}
        return
    else:
        row = rng.choice(absent_rows)
    yield {**base, "question": _question(rng, row, column, english, year if known else 0)}


def _written(
    rng: random.Random,
    subject: Subject,
    english: bool,
    rows: list[str],
    columns: list[tuple[str, str, str, Draw]],
    cells: dict[tuple[str, str], str],
    title: str,
) -> tuple[str, dict[tuple[str, str], int]]:
    """The table as text, and where each cell starts in it."""
    key = subject.english_key if english else subject.key
    heads = [c[1] if english else c[0] for c in columns]
    text, places = "", {}
    if rng.random() < 0.5:
        text = title + "\n"
    if rng.random() < 0.7:
        text += f"| {key} | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 1)}\n"
        for row in rows:
            text += f"| {row} |"
            for column in columns:
                places[row, column[0]] = len(text) + 1
                text += f" {cells[row, column[0]]} |"
            text += "\n"
        return text.rstrip("\n"), places
    for row in rows:
        text += f"{row}: " if english else f"{row}："
        for head, column in zip(heads, columns, strict=True):
            text += f"{head} " if english else f"{head}为"
            places[row, column[0]] = len(text)
            text += cells[row, column[0]] + ("; " if english else "；")
        text = text.rstrip("；; ") + (".\n" if english else "。\n")
    return text.rstrip("\n"), places


def _question(
    rng: random.Random,
    row: str,
    column: tuple[str, str, str, Draw],
    english: bool,
    year: int,
    always: bool = False,
) -> str:
    """Names the year `always`, or sometimes, and never if it is 0."""
    chinese, name = column[0].partition("（")[0], column[1].partition(" (")[0]
    named = year and (always or rng.random() < 0.3)
    if rng.random() < (0.6 if english else 0.15):
        when = f" in {year}" if named else ""
        forms = ("What is the {name} of {row}{when}?", "{name} of {row}{when}", "{row}{when}: what {name}?")
        return rng.choice(forms).format(name=name.lower(), row=row, when=when)
    when = f"{year}年" if named else ""
    ending = "是谁" if chinese[-1] in "人师" else rng.choice(("是多少", "是什么"))
    forms = (
        when + column[2].format(row=row),
        when + column[2].format(row=row),
        f"{when}{row}的{chinese}{ending}？",
        f"{row} {chinese} {when}".strip(),
    )
    return rng.choice(forms)
